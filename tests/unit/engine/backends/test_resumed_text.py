"""The text of an answer that is taken up where it was cut: no byte of a character, and no part of a stop string, is lost or sent twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from services.engine.backends.huggingface.tokenizer import ModelTokenizer
from services.engine.backends.transformers.backend import TransformersBackend
from services.engine.generation import GenerationRequest, SamplingParams
from services.engine.token_generator import Prepared, TokenGenerator
from services.openai.requests import decode_chat, decode_completion

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from services.settings import EngineSettings

pytestmark = pytest.mark.asyncio
TOKENS = 60
PROMPT = [20, 30, 40]


@pytest_asyncio.fixture
async def generator(engine_settings: EngineSettings) -> AsyncIterator[TokenGenerator]:
    """One byte a token, so that most characters come in pieces."""
    backend = TransformersBackend(engine_settings)
    generator = TokenGenerator(backend, backend.tokenizer)
    await generator.start(lambda _: None)
    yield generator
    await generator.stop()


async def pieces(generator: TokenGenerator, stop: tuple[str, ...], tokens: list[int], min_tokens: int = 0) -> list[tuple[list[int], str]]:
    """Tokens and text, event by event, of an answer that goes on after `tokens`."""
    sampling = SamplingParams(seed=3, temperature=1.3)
    request = GenerationRequest("r", PROMPT, sampling, TOKENS, min_tokens=min_tokens, resume_token_ids=tokens)
    return [(event.token_ids, event.text) async for event in generator.generate(Prepared(request, stop))]


@pytest.mark.parametrize("min_tokens", [0, 20])
@pytest.mark.parametrize("has_stop", [False, True])
async def test_text_goes_on_where_it_was_cut(generator: TokenGenerator, min_tokens: int, has_stop: bool) -> None:
    """After each of its tokens, with and without a stop string near the end, which the cut may run through."""
    text = "".join(piece for _, piece in await pieces(generator, (), []))
    assert "\ufffd" in text  # some bytes never became a character
    stop = (text[-12:-8],) if has_stop else ()
    whole = await pieces(generator, stop, [], min_tokens)
    wanted = "".join(piece for _, piece in whole)
    assert has_stop != (wanted == text)
    sent: list[int] = []
    before = ""
    for token_ids, piece in whole[:-1]:
        sent, before = [*sent, *token_ids], before + piece
        rest = await pieces(generator, stop, sent, min_tokens)
        assert before + "".join(piece for _, piece in rest) == wanted, f"cut after {len(sent)} tokens"


async def test_an_answer_that_was_whole_ends_at_once(generator: TokenGenerator) -> None:
    """With what was held back, and no token more."""
    tokens = [token for token_ids, _ in await pieces(generator, (), []) for token in token_ids]
    assert len(tokens) == TOKENS
    assert [token_ids for token_ids, _ in await pieces(generator, (), tokens)] == [[]]


class SpaceDropping(ModelTokenizer):
    """Words with a space before them, but for the one at a text's beginning, as some tokenizers have it."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """A word for each token."""
        return "".join(f" w{token}" for token in token_ids)[1:]


async def test_a_completion_goes_on_with_the_space_that_its_prompt_lacks(generator: TokenGenerator) -> None:
    """A chat's answer begins a text of its own."""
    generator.tokenizer.__class__ = SpaceDropping
    completion = decode_completion(b'{"prompt": [20, 30, 40], "max_tokens": 3, "ignore_eos": true}')
    chat = decode_chat(b'{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "ignore_eos": true}')
    for prepared, beginning in (
        (await generator.prepare_completion("r", completion, 10), " w"),
        (await generator.prepare_chat("r", chat, 10), "w"),
    ):
        text = "".join([event.text async for event in generator.generate(prepared)])
        assert text.startswith(beginning)
        assert text.count("w") == 3
