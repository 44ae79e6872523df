"""The batch, against model.generate and against itself."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from services.engine.generation import SamplingParams
from services.engine.sampling import RowParams, sample, seed_array
from tests.unit.engine.backends.asking import (
    GREEDY,
    NEW_TOKENS,
    SAMPLED,
    answer,
    generated,
    prompts,
    request,
    tokens_of,
    until_idle,
)

if TYPE_CHECKING:
    from pathlib import Path

    from services.engine.backends.transformers.backend import TransformersBackend


def check_equal(folder: Path, wanted: list[list[int]], found: list[list[int]], expected: list[list[int]]) -> None:
    """All but one in a hundred are equal, and those part where the two tokens' logits differ by rounding only."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    parted = [triple for triple in zip(wanted, found, expected, strict=True) if triple[1] != triple[2]]
    assert len(parted) <= len(wanted) // 100
    for prompt, ours, theirs in parted:
        place = next(index for index, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + theirs[:place]])).logits[0, -1]
        difference = abs(float(logits[ours[place]] - logits[theirs[place]])) / float(logits.std())
        assert difference < 1e-3, f"token {place}: {ours[place]} for {theirs[place]}, {difference:.2g} standard deviations apart"


async def test_greedy_answers_equal_generate_alone_and_in_a_mixed_batch(backend: TransformersBackend, model_folder: Path) -> None:
    """Two hundred prompts get token for token what model.generate gives, one at a time and while others join and leave around them.

    But where the model itself cannot tell two tokens apart: sums in another order round otherwise.
    """
    wanted = prompts(200)
    expected = generated(model_folder, wanted)
    check_equal(model_folder, wanted, [await tokens_of(backend, request(prompt)) for prompt in wanted], expected)
    lengths = [3 + (7 * index) % (NEW_TOKENS - 2) for index in range(len(wanted))]
    together = await asyncio.gather(
        *(tokens_of(backend, request(prompt, max_tokens=length)) for prompt, length in zip(wanted, lengths, strict=True))
    )
    check_equal(model_folder, wanted, together, [tokens[:length] for tokens, length in zip(expected, lengths, strict=True)])


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
    expected: list[int] = []
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
