"""When a waiting request joins, by strategy; and what of that a user of the engine sees."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from services.engine.backends.transformers.backend import TransformersBackend
from services.engine.backends.transformers.scheduling import Continuous, OneByOne, Window
from services.engine.generation import BackendError, GenerationRequest, SamplingParams

if TYPE_CHECKING:
    from services.settings import EngineSettings


def test_none_takes_one_when_nothing_runs() -> None:
    """And nobody beside it."""
    assert [OneByOne().num_joining(5, running, 9.0) for running in (0, 1)] == [1, 0]


def test_window_takes_all_when_its_time_is_over_or_its_rows_are_full() -> None:
    """Never while a batch runs."""
    window = Window(0.05, max_rows=4)
    assert window.num_joining(3, 0, 0.01) == 0
    assert window.seconds_to_wait(3, 0.01) == pytest.approx(0.04)
    assert window.num_joining(3, 0, 0.05) == 3
    assert window.num_joining(4, 0, 0.0) == 4
    assert window.num_joining(4, 1, 9.0) == 0
    assert window.seconds_to_wait(0, 0.0) is None


def test_continuous_takes_all_at_once() -> None:
    """Whatever runs."""
    assert Continuous().num_joining(3, 7, 0.0) == 3


def request(name: str, max_tokens: int) -> GenerationRequest:
    """A greedy one."""
    return GenerationRequest(name, [20, 30, 40], SamplingParams(seed=0, temperature=0), max_tokens)


async def order_of(settings: EngineSettings) -> list[str]:
    """Who has how many tokens when: two long requests and a short one, all at once; the names in the order of their tokens."""
    backend = TransformersBackend(settings)
    await backend.start(lambda _: None)
    seen: list[str] = []

    async def run(name: str, max_tokens: int) -> None:
        async with aclosing(backend.generate(request(name, max_tokens))) as events:  # type: ignore[type-var]
            async for event in events:
                seen.extend([name] * event.num_tokens)

    await asyncio.gather(run("a", 20), run("b", 20), run("c", 2))
    await backend.stop()
    return seen


@pytest.mark.asyncio
async def test_none_answers_one_after_the_other(engine_settings: EngineSettings) -> None:
    """The short request waits for the two before it."""
    assert await order_of(structs.replace(engine_settings, batching="none")) == ["a"] * 20 + ["b"] * 20 + ["c"] * 2


@pytest.mark.asyncio
@pytest.mark.parametrize("batching", ["window", "continuous"])
async def test_the_others_run_together(engine_settings: EngineSettings, batching: str) -> None:
    """The short request is over long before."""
    seen = await order_of(structs.replace(engine_settings, batching=batching))
    assert len(seen) == 42
    assert len(seen) - seen[::-1].index("c") < 20


@pytest.mark.asyncio
async def test_what_waits_in_a_window_and_leaves_is_not_run(engine_settings: EngineSettings) -> None:
    """A client that left before the window closed costs nothing, and the next window is the next one's."""
    backend = TransformersBackend(structs.replace(engine_settings, batching="window", batch_window_ms=200))
    await backend.start(lambda _: None)

    async def leave() -> None:
        async for _ in backend.generate(request("leaves", 1000)):
            pass

    leaves = asyncio.create_task(leave())
    await asyncio.sleep(0)
    leaves.cancel()
    stays = [event async for event in backend.generate(request("stays", 3))]
    assert sum(event.num_tokens for event in stays) == 3
    assert backend.load().running == 0
    await backend.stop()


@pytest.mark.asyncio
async def test_the_cache_is_bounded(engine_settings: EngineSettings) -> None:
    """KV_CACHE_BYTES: the context is what fits, those that do not fit together take turns, and all are answered as without a bound."""
    size = 2 * 2 * 2 * 16 * 4  # keys and values, two layers, two heads of 16 numbers in float32
    bounded = structs.replace(engine_settings, kv_cache_bytes=size * 400, enable_prefix_caching=False)
    answers = []
    for settings in (engine_settings, bounded):
        backend = TransformersBackend(settings)
        info = await backend.start(lambda _: None)

        async def run(backend: TransformersBackend, name: str) -> list[int]:
            return [token async for event in backend.generate(request(name, 150)) for token in event.token_ids]

        answers.append(await asyncio.gather(*(run(backend, str(number)) for number in range(6))))
        await backend.stop()
    assert info.context_tokens == 400
    assert answers[0] == answers[1]


@pytest.mark.asyncio
async def test_a_cache_that_holds_nothing_ends_the_start(engine_settings: EngineSettings) -> None:
    """With a line that names the setting."""
    with pytest.raises(BackendError, match=r"KV_CACHE_BYTES=20000: that is room for \d+ tokens"):
        await TransformersBackend(structs.replace(engine_settings, kv_cache_bytes=20_000)).start(lambda _: None)
