"""Requests that cannot be carried out, models that break, stops: each fails alone and clearly."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import LlamaForCausalLM

from services.engine.backends.transformers.backend import TransformersBackend
from services.engine.generation import BackendError, BackendUnavailable
from tests.unit.engine.backends.asking import (
    DEADLINE_SECONDS,
    generated,
    prompts,
    read_to_end,
    request,
    tokens_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from services.settings import EngineSettings


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


@pytest.mark.parametrize("prompt", [[5], [5, 6]], ids=["drawing", "reading"])
async def test_a_broken_device_is_the_engines_death(backend: TransformersBackend, prompt: list[int]) -> None:
    """What no later step could survive ends the engine: it says why, what runs fails, and what comes later may be tried elsewhere."""
    running = backend.generate(request([7, 8], max_tokens=1000))
    await anext(running)
    death = asyncio.create_task(backend.died())
    backend._loaded.model.register_forward_pre_hook(_break_device)
    with pytest.raises(BackendError, match="unspecified launch failure"):
        await tokens_of(backend, request(prompt))
    with pytest.raises(BackendError, match="unspecified launch failure"):
        await read_to_end(running)
    assert "AcceleratorError: CUDA error" in await asyncio.wait_for(death, DEADLINE_SECONDS)
    with pytest.raises(BackendUnavailable, match="died"):
        await tokens_of(backend, request(prompt))


def _break_device(_module: torch.nn.Module, _args: object) -> None:
    raise torch.AcceleratorError("CUDA error: unspecified launch failure")


def _break(_module: torch.nn.Module, _args: object) -> None:
    raise RuntimeError("out of paper")
