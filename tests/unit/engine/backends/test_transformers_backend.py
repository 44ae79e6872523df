"""The batch, against model.generate and against itself."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from services.engine.backends.transformers.backend import TransformersBackend
from services.engine.generation import BackendError, GenerationRequest, SamplingParams
from services.engine.sampling import RowParams, sample, seed_array

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from services.engine.generation import FinishReason, TokenEvent
    from services.settings import EngineSettings

NEW_TOKENS = 24
GREEDY = SamplingParams(seed=0, temperature=0)
SAMPLED = SamplingParams(seed=77, temperature=1.2, top_k=50, top_p=0.95, min_p=0.01)
DEADLINE_SECONDS = 60


def prompts(number: int) -> list[list[int]]:
    """Prompts of very different lengths, from one token to more than one step may read."""
    generator = torch.Generator().manual_seed(number)
    lengths = [1, 2, 300, 600, *torch.randint(3, 90, (number - 4,), generator=generator).tolist()]
    return [torch.randint(7, 263, (length,), generator=generator).tolist() for length in lengths]


def request(prompt: Sequence[int], sampling: SamplingParams = GREEDY, max_tokens: int = NEW_TOKENS, **rest: object) -> GenerationRequest:
    """A request that only `max_tokens` ends."""
    return GenerationRequest("r", prompt, sampling, max_tokens, **rest)  # type: ignore[arg-type]


async def answer(backend: TransformersBackend, wanted: GenerationRequest) -> tuple[list[int], FinishReason | None, int]:
    """All tokens, the finish reason, and the number of tokens counted."""
    tokens: list[int] = []
    reason, num_tokens = None, 0
    async with aclosing(backend.generate(wanted)) as events:  # type: ignore[type-var]  # it is an async generator
        async for event in events:
            tokens += event.token_ids
            num_tokens += event.num_tokens
            reason = event.finish_reason
    return tokens, reason, num_tokens


async def tokens_of(backend: TransformersBackend, wanted: GenerationRequest) -> list[int]:
    """All tokens of the answer."""
    return (await answer(backend, wanted))[0]


async def read_to_end(events: AsyncIterator[TokenEvent]) -> None:
    """Reads what is left."""
    async for _ in events:
        pass


async def until_idle(backend: TransformersBackend) -> None:
    """Waits until no row runs."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while backend.load().running:
        assert time.monotonic() < deadline, backend.load()
        await asyncio.sleep(0.005)


def generated(folder: Path, wanted: list[list[int]]) -> list[list[int]]:
    """What model.generate answers to each prompt, greedy, alone."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    outputs = [model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0) for prompt in wanted]
    return [output[0, len(prompt) :].tolist() for prompt, output in zip(wanted, outputs, strict=True)]


async def test_greedy_answers_equal_generate_alone_and_in_a_mixed_batch(backend: TransformersBackend, model_folder: Path) -> None:
    """Thirty prompts get token for token what model.generate gives, one at a time and while others join and leave around them."""
    wanted = prompts(30)
    expected = generated(model_folder, wanted)
    assert [await tokens_of(backend, request(prompt)) for prompt in wanted] == expected
    lengths = [3 + (7 * index) % (NEW_TOKENS - 2) for index in range(len(wanted))]
    together = await asyncio.gather(
        *(tokens_of(backend, request(prompt, max_tokens=length)) for prompt, length in zip(wanted, lengths, strict=True))
    )
    assert together == [tokens[:length] for tokens, length in zip(expected, lengths, strict=True)]


async def test_seeded_answers_are_the_same_alone_and_in_a_batch(backend: TransformersBackend) -> None:
    """A sampled answer with a seed does not depend on who shares the batch."""
    wanted = [request(prompt, SamplingParams(seed, 1.1, top_p=0.9)) for seed, prompt in enumerate(prompts(12))]
    alone = [await tokens_of(backend, one) for one in wanted]
    assert list(await asyncio.gather(*(tokens_of(backend, one) for one in wanted))) == alone
    assert len({tuple(tokens) for tokens in alone}) == len(alone)


async def test_a_sampled_token_depends_on_seed_and_place_in_the_answer(backend: TransformersBackend, model_folder: Path) -> None:
    """Each token is what the sampler draws from the model's logits for the request's seed and the token's place, counted from 0."""
    model = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    tokens = prompts(5)[4]
    params, seeds = RowParams.of([SAMPLED]), seed_array([SAMPLED.seed])
    expected = []
    for place in range(NEW_TOKENS):
        with torch.inference_mode():
            logits = model(torch.tensor([tokens + expected])).logits[:, -1]
        expected.append(int(sample(logits, params, seeds, np.array([place], dtype=np.uint64))))
    assert await tokens_of(backend, request(tokens, SAMPLED)) == expected


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
async def test_a_cut_answer_continues_as_if_uncut(backend: TransformersBackend, sampling: SamplingParams) -> None:
    """Generation that is resumed after any of its tokens gives the rest of the uncut answer, alone or beside others."""
    prompt = prompts(5)[4]
    whole = await tokens_of(backend, request(prompt, sampling))
    cuts = [1, 5, NEW_TOKENS - 1]
    rest = await asyncio.gather(*(answer(backend, request(prompt, sampling, resume_token_ids=whole[:cut])) for cut in cuts))
    assert [(whole[:cut] + tokens, reason, cut + count) for cut, (tokens, reason, count) in zip(cuts, rest, strict=True)] == [
        (whole, "length", NEW_TOKENS)
    ] * len(cuts)


async def test_an_answer_that_was_complete_when_cut_ends_at_once(backend: TransformersBackend) -> None:
    """Resuming after the last allowed token brings no token and says why."""
    assert await answer(backend, request([9, 9], max_tokens=2, resume_token_ids=[8, 8])) == ([], "length", 0)


async def test_a_stop_token_ends_the_answer_and_is_counted_but_not_sent(backend: TransformersBackend) -> None:
    """The answer ends before its first stop token, with the reason stop."""
    whole = await tokens_of(backend, request(prompts(5)[4], SAMPLED))
    stop = whole[10]
    first = whole.index(stop)
    stopped = await answer(backend, request(prompts(5)[4], SAMPLED, stop_token_ids=frozenset({stop, 2})))
    assert stopped == (whole[:first], "stop", first + 1)


async def test_min_tokens_holds_stop_tokens_back(backend: TransformersBackend) -> None:
    """No stop token is drawn before `min_tokens` tokens, in a batch where another request may stop at once."""
    stops = frozenset(range(2, 250))
    held, free = await asyncio.gather(
        answer(backend, request([40, 41], min_tokens=9, stop_token_ids=stops)),
        answer(backend, request([40, 41], stop_token_ids=stops)),
    )
    assert len(held[0]) >= 9
    assert not stops.intersection(held[0][:9])
    assert free[2] < 9


async def test_a_context_that_is_full_ends_the_answer(backend: TransformersBackend) -> None:
    """Prompt and answer together never exceed the context, whatever `max_tokens` says."""
    tokens, reason, _ = await answer(backend, request([9] * 1000, max_tokens=500))
    assert (len(tokens), reason) == (24, "length")


async def test_leaving_frees_the_row(backend: TransformersBackend) -> None:
    """A client that leaves frees its slot within a step of the model; the others' answers stay what they were."""
    expected = await tokens_of(backend, request([50, 60, 70], max_tokens=200))
    others = [asyncio.create_task(tokens_of(backend, request([50, 60, 70], max_tokens=200))) for _ in range(2)]
    for _ in range(3):
        async with aclosing(backend.generate(request([30] * 80, max_tokens=900))) as events:  # type: ignore[type-var]
            await anext(events)
    assert list(await asyncio.gather(*others)) == [expected, expected]
    await until_idle(backend)
    steps: list[int] = []
    hook = backend._loaded.model.register_forward_pre_hook(lambda *_: steps.append(1))
    async with aclosing(backend.generate(request([30] * 80, max_tokens=900))) as events:  # type: ignore[type-var]
        await anext(events)
    so_far = len(steps)
    await until_idle(backend)
    hook.remove()
    assert len(steps) - so_far <= 2
    assert backend.load().cache_usage == 0


async def test_a_reader_that_does_not_read_delays_nobody(backend: TransformersBackend) -> None:
    """While one client reads nothing, another gets its whole answer; the slow one then gets all that came, merged."""
    slow = backend.generate(request([5, 6], max_tokens=100))
    first = await anext(slow)
    assert len(await tokens_of(backend, request([7, 8], max_tokens=300))) == 300
    await until_idle(backend)
    rest = await anext(slow)
    assert (len(first.token_ids) + len(rest.token_ids), rest.finish_reason) == (100, "length")


@pytest.mark.parametrize("prompt", [[], [263], [-1], [9] * 1024, [10**12]])
async def test_an_impossible_request_fails_alone(backend: TransformersBackend, prompt: list[int]) -> None:
    """An empty or too long prompt, or a token that does not exist, is refused; what runs beside it goes on."""
    running = asyncio.create_task(tokens_of(backend, request([50, 60], max_tokens=100)))
    with pytest.raises(BackendError, match=r"from \d"):
        await tokens_of(backend, request(prompt))
    assert len(await running) == 100


async def test_more_requests_than_rows_are_all_answered(backend: TransformersBackend) -> None:
    """Eight slots and forty requests: none is lost."""
    answers = await asyncio.gather(*(tokens_of(backend, request(prompt, max_tokens=6)) for prompt in prompts(40)))
    assert [len(tokens) for tokens in answers] == [6] * 40


async def test_stopping_fails_what_runs(backend: TransformersBackend) -> None:
    """A stop ends running requests with an error instead of leaving them waiting, and later ones are refused."""
    events = backend.generate(request([5, 6], max_tokens=1000))
    await anext(events)
    await backend.stop()
    with pytest.raises(BackendError, match="stopped"):
        await read_to_end(events)
    with pytest.raises(BackendError, match="does not run"):
        await tokens_of(backend, request([5, 6]))


async def test_load_tells_what_runs(backend: TransformersBackend) -> None:
    """While an answer is generated the load shows one row, a pace and a used cache."""
    async with aclosing(backend.generate(request([9] * 100, max_tokens=900))) as events:  # type: ignore[type-var]
        await anext(events)
        load = backend.load()
        assert load.running == 1
        assert load.tokens_per_second > 0
        assert 0 < load.cache_usage <= 1


async def test_a_poisoned_request_fails_alone(engine_settings: EngineSettings, model_folder: Path, tmp_path: Path) -> None:
    """A prompt on which the model computes NaN gets an error; a batch mate and the next user of its row get their true answers."""
    expected = generated(model_folder, [[50, 60, 70]])[0]
    poison = next(token for token in range(200, 263) if token not in expected)
    model = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model.model.embed_tokens.weight.data[poison] = float("nan")
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    backend = TransformersBackend(type(engine_settings)(model_name=str(tmp_path), device="cpu", dtype="float32", num_threads=1))
    await backend.start(lambda _: None)
    for prompt in ([50, poison, 60], [poison] * 400):
        good, bad, also_good = await asyncio.gather(
            tokens_of(backend, request([50, 60, 70])),
            tokens_of(backend, request(prompt)),
            tokens_of(backend, request([50, 60, 70])),
            return_exceptions=True,
        )
        assert isinstance(bad, BackendError)
        assert "not finite" in str(bad)
        assert (good, also_good) == (expected, expected)
    mates = await asyncio.gather(*(tokens_of(backend, request([50, 60, 70][:length])) for length in (3, 2, 3, 1)))
    assert (mates[0], mates[2]) == (expected, expected)
    await backend.stop()


@pytest.mark.parametrize("prompt", [[5], [5, 6]], ids=["drawing", "reading"])
async def test_a_model_that_breaks_fails_its_requests_and_goes_on(backend: TransformersBackend, prompt: list[int]) -> None:
    """An exception in a step reaches the clients of that batch as an error; the next request is answered."""
    expected = await tokens_of(backend, request([5, 6]))
    hook = backend._loaded.model.register_forward_pre_hook(_break)
    wanted = [asyncio.create_task(tokens_of(backend, request(prompt))) for _ in range(3)]
    done, late = await asyncio.wait(wanted, timeout=DEADLINE_SECONDS)
    assert not late
    outcomes = [one.exception() for one in done]
    hook.remove()
    assert all(isinstance(one, BackendError) and "out of paper" in str(one) for one in outcomes)
    assert await tokens_of(backend, request([5, 6])) == expected


def _break(_module: torch.nn.Module, _args: object) -> None:
    raise RuntimeError("out of paper")
