"""Many clients that leave, running and waiting: nothing of them stays behind in the pod."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
import psutil
import pytest

from tests.contract.asking import CHAT, body, metric, until_metric
from tests.drills.load import show
from tests.running import running_pods, until

if TYPE_CHECKING:
    from tests.running import RunningPods

SLOTS = 4
AT_ONCE = 4 * SLOTS
MAX_GROWTH_BYTES = 8 << 20
"""What an allocator may keep of the memory of hundreds of requests."""


@dataclass(frozen=True)
class Held:
    """What a pod's process holds."""

    files: int
    threads: int
    tasks: int
    memory: int


async def held(pods: RunningPods) -> Held:
    """As of now, when nothing runs and no connection but the asking one is open."""
    process = psutil.Process(pods.entry("engine-1")["pid"])
    async with aiohttp.ClientSession(pods.url) as session:
        for name in ("llm_slots_in_use", "llm_queue_depth", "llm_requests_in_progress", "llm_batch_size"):
            await until_metric(session, pods.url, name, 0)
        until(lambda: len(process.net_connections()) <= 2, lambda: f"open: {process.net_connections()}")
        tasks = int(await metric(session, pods.url, "llm_event_loop_tasks"))
        return Held(process.num_fds(), process.num_threads(), tasks, process.memory_info().rss)


async def leave(session: aiohttp.ClientSession, tokens: int, *, is_stream: bool) -> None:
    """Asks for a long answer and leaves: a stream at its first byte if that comes, JSON, and who still waits, after a moment."""

    async def ask() -> None:
        async with session.post(CHAT, json=body(max_tokens=tokens, ignore_eos=True, stream=is_stream)) as response:
            await response.content.readline()

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(ask(), 0.1)


async def crowd(pods: RunningPods, count: int, tokens: int) -> None:
    """So many clients, half of them streams, more at once than there are slots; none stays for its answer."""
    async with aiohttp.ClientSession(pods.url, connector=aiohttp.TCPConnector(limit=0)) as session:
        for begun in range(0, count, AT_ONCE):
            batch = range(begun, min(count, begun + AT_ONCE))
            await asyncio.gather(*(leave(session, tokens, is_stream=number % 2 == 0) for number in batch))


@pytest.mark.parametrize(
    ("engine", "count", "tokens"), [("fake", 500, 4000), pytest.param("transformers", 60, 500, marks=pytest.mark.model)]
)
async def test_clients_that_leave_leave_nothing(engine: str, count: int, tokens: int) -> None:
    """After hundreds of cancelled requests, running and queued: the same tasks, files and threads as before, and the same memory."""
    # Without backpressure everybody may wait, however long; with it those who come while a queue stands are refused.
    settings = {"max_concurrent_requests": SLOTS, "enable_backpressure": False, "fake_tokens_per_second": 50}
    with running_pods(1, engine=engine, **settings) as pods:
        await crowd(pods, max(count // 5, 4 * AT_ONCE), tokens)  # what is made once and kept
        before = await held(pods)
        await crowd(pods, count, tokens)
        after = await held(pods)
        async with aiohttp.ClientSession(pods.url) as session:
            ran, left = await metric(session, pods.url, "llm_generation_latency_seconds_count"), await cancelled(session, pods)
        show(f"{engine}: {count} left, {left:.0f} in all cancelled, {ran:.0f} had run; {before} -> {after}")
        assert left >= count
        assert SLOTS < ran < left, "some ran and some only waited"
        assert after.files <= before.files
        assert after.tasks <= before.tasks
        assert after.threads <= before.threads
        assert after.memory - before.memory < MAX_GROWTH_BYTES


async def cancelled(session: aiohttp.ClientSession, pods: RunningPods) -> float:
    """How many requests the pod says were left by their clients."""
    return await metric(session, pods.url, 'llm_requests_total.*"cancelled".*')
