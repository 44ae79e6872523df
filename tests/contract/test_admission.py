"""Admission as a client of one pod sees it: priorities, fairness, the queue's page, and a queue that stays within its memory."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.contract.asking import CHAT, body, metric, until_metric
from tests.running import running_pods

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.running import RunningPods

ENDLESS = {"max_tokens": 3000, "ignore_eos": True}
MIB = 1 << 20


@contextlib.asynccontextmanager
async def busy(**settings: Any) -> AsyncIterator[tuple[RunningPods, aiohttp.ClientSession]]:
    """A pod with one slot, a client, and the task that has the slot; where nothing is known of the engine everybody waits."""
    connector = aiohttp.TCPConnector(limit=0)
    with running_pods(1, max_concurrent_requests=1, queue_timeout_seconds=14, fake_tokens_per_second=1e4, **settings) as pods:
        async with aiohttp.ClientSession(pods.url, connector=connector) as session:
            holding = asyncio.create_task(session.post(CHAT, json=body(**ENDLESS)))
            await until_metric(session, pods.url, "llm_slots_in_use", 1)
            yield pods, session
            holding.cancel()


async def asked(session: aiohttp.ClientSession, order: list[str], name: str, **headers: str) -> int:
    """A short request; notes its name when it is answered."""
    async with session.post(CHAT, json=body(stream=False, max_tokens=1), headers=headers) as response:
        await response.read()
        order.append(name)
        return response.status


async def test_a_priority_that_is_none_is_refused(fake: RunningPods) -> None:
    """The message names the header and what is allowed."""
    async with (
        aiohttp.ClientSession(fake.url) as session,
        session.post(CHAT, json=body(stream=False), headers={"x-priority": "urgent"}) as response,
    ):
        error = (await response.json())["error"]
    assert (response.status, error["code"], error["param"]) == (400, "invalid_value", "x-priority")
    assert error["message"] == "x-priority must be one of high, normal, low, got 'urgent'"


async def test_the_urgent_goes_first_but_no_client_is_more_urgent_than_it_may_be() -> None:
    """By priority, and of those of the same priority as they came; `high` of a client whose most is `low` is low."""
    async with busy(fake_first_token_ms=300, queue_capacity=64) as (pods, session):
        order: list[str] = []
        tasks = []
        kinds: list[tuple[str, dict[str, str]]] = [
            ("low", {"x-priority": "low"}),
            ("capped", {"x-priority": "high", "x-client-max-priority": "low"}),
            ("normal", {}),
            ("high", {"x-priority": "high"}),
        ]
        for number, (name, headers) in enumerate(kinds):
            tasks.append(asyncio.create_task(asked(session, order, name, **headers)))
            await until_metric(session, pods.url, "llm_queue_depth", number + 1)
        assert await asyncio.gather(*tasks) == [200] * len(kinds)
        assert order == ["high", "normal", "low", "capped"]


async def test_a_flood_does_not_starve_another_client() -> None:
    """One client fills the queue; another one's request gets a place, and is answered among the first."""
    async with busy(fake_first_token_ms=300, queue_capacity=20) as (pods, session):
        order: list[str] = []
        flood = [asyncio.create_task(asked(session, order, "flood", **{"x-client-id": "flood"})) for _ in range(20)]
        await until_metric(session, pods.url, "llm_queue_depth", 20)
        assert await asked(session, order, "other", **{"x-client-id": "other"}) == 200
        # One of the flood is pushed out, one may be served before.
        assert order.index("other") <= 2
        assert sorted(await asyncio.gather(*flood)) == [200] * 19 + [429]


async def test_the_queue_can_be_seen() -> None:
    """Who waits, where, and since when; a client that leaves is gone at once."""
    async with busy(fake_first_token_ms=60_000) as (pods, session):
        waiting = [asyncio.create_task(asked(session, [], name, **{"x-client-id": name})) for name in ("alice", "bob")]
        await until_metric(session, pods.url, "llm_queue_depth", 2)
        async with session.get("/v1/queue") as response:
            seen = await response.json()
        assert (seen["pod"], seen["slots"], seen["running"], seen["waiting"], seen["capacity"]) == ("engine-1", 1, 1, 2, 64)
        assert {one["client"] for one in seen["requests"]} == {"alice", "bob"}
        assert all(one["waited"] >= 0 and one["max_tokens"] == 1 for one in seen["requests"])
        assert seen["waiting_bytes"] > 0
        for task in waiting:
            task.cancel()
        await until_metric(session, pods.url, "llm_queue_depth", 0)
        assert await metric(session, pods.url, "llm_queue_bytes") == 0


@pytest.mark.timeout(180)
async def test_a_thousand_waiting_requests_of_100_kb_stay_within_their_bound() -> None:
    """All of them wait, in less than twice what QUEUE_CAPACITY_BYTES gives them; twice as many get 429 for the rest."""
    limit = 300 * MIB
    settings = {"queue_capacity": 5000, "queue_capacity_bytes": limit, "max_model_len": 100_000, "fake_first_token_ms": 60_000}
    async with busy(**settings) as (pods, session):
        pid = pods.entries[0]["pid"]
        before = resident(pid)
        large = body(stream=False, messages=[{"role": "user", "content": "x" * 100_000}], max_tokens=1)
        tasks = [asyncio.create_task(posted(session, large)) for _ in range(1000)]
        await until_metric(session, pods.url, "llm_queue_depth", 1000)
        told = await metric(session, pods.url, "llm_queue_bytes")
        grown = resident(pid) - before
        assert told <= limit
        assert grown <= 2 * limit, f"{grown / MIB:.0f} MiB more for {told / MIB:.0f} MiB told"
        more = [asyncio.create_task(posted(session, large)) for _ in range(1000)]
        done, _ = await asyncio.wait(more, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result() for task in done} == {429}
        for task in (*tasks, *more):
            task.cancel()
        await asyncio.gather(*tasks, *more, return_exceptions=True)


async def posted(session: aiohttp.ClientSession, asked_for: dict[str, Any]) -> int:
    """A request's status."""
    async with session.post(CHAT, json=asked_for) as response:
        await response.read()
        return response.status


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) * 1024
