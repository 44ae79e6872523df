"""The load client beside what pods and Envoy count of the same requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from services.ops.load.arrivals import poisson, steady
from services.ops.load.client import run_load
from services.ops.load.kinds import chat, completion
from services.ops.load.summary import summarise
from services.ops.pod_figures import parse
from tests.drills.fleet import fleet
from tests.stack.harness import until

if TYPE_CHECKING:
    from tests.drills.fleet import Fleet

pytestmark = pytest.mark.stack

LEAVERS = chat("leaver", is_stream=True, max_tokens=2000, leave_after_tokens=3)
MIX = [chat(), chat(is_stream=True), completion(), completion(is_stream=True), LEAVERS]


async def counted(running: Fleet) -> Counter[tuple[str, str]]:
    """Requests by pod and class of status, as the pods count them."""
    found = Counter[tuple[str, str]]()
    for entry in running.pods.entries:
        async with running.edge.session.get(f"http://127.0.0.1:{entry['port']}/metrics") as response:
            sample = parse(await response.text())
        found.update({(entry["name"], status): int(count) for status, count in sample.requests.items() if count})
    return found


async def test_the_client_counts_what_the_pods_count() -> None:
    """Each request is told with the pod that served it; a client that left is a 499 there, never an answer."""
    async with fleet(2) as running:
        outcomes = await run_load(running.edge.url, MIX, [poisson(20, 2), steady(10, 1)], seed=11)
        told = Counter((outcome.pod, "cancelled" if outcome.has_left else "2xx") for outcome in outcomes)

        async def same() -> bool:
            return await counted(running) == told

        await until(same, f"the pods count {told}")
        records = (running.pods.state_dir / "runner.log").read_text()
        assert records.count('"status":499') + records.count('"status": 499') == sum(outcome.has_left for outcome in outcomes)
    assert {outcome.kind for outcome in outcomes} == {kind.name for kind in MIX}
    assert all(outcome.has_left == (outcome.kind == "leaver") for outcome in outcomes)
    assert {(outcome.result, outcome.attempts, outcome.tokens) for outcome in outcomes if not outcome.has_left} == {("200", 1, 20)}
    assert all(outcome.ttft and outcome.request_id and "place=" in outcome.queue for outcome in outcomes if outcome.is_stream)
    first, second = summarise(outcomes, [poisson(20, 2), steady(10, 1)], deadline=30)
    assert (second.requests, second.offered) == (10, 10)
    assert first.error_rate == second.error_rate == 0
    assert first.goodput == first.achieved


async def test_refusals_of_a_full_fleet_are_told_by_code_and_time_to_return() -> None:
    """A burst for one slot: some are answered, the rest is 429 with a time to return, and nothing is broken."""
    async with fleet(1, max_concurrent_requests=1, queue_capacity=1, fake_tokens_per_second=100) as running:
        outcomes = await run_load(running.edge.url, [chat(max_tokens=50)], [steady(200, 0.1)])
    results = Counter(outcome.result for outcome in outcomes)
    assert results["200"] >= 2
    assert set(results) == {"200", "429 queue_full"}
    refused = [outcome for outcome in outcomes if outcome.status == 429]
    assert all(outcome.retry_after and outcome.pod == "engine-1" for outcome in refused)


async def test_a_load_goes_on_where_a_pod_is_killed() -> None:
    """Requests without a first token are answered elsewhere; a stream that breaks is told as broken, not as whole."""
    async with fleet(2, fake_tokens_per_second=50) as running:
        kinds = [chat(max_tokens=20), chat(is_stream=True, max_tokens=100)]
        load = asyncio.create_task(run_load(running.edge.url, kinds, [steady(20, 3)], seed=5))
        await running.until_in_flight(6)
        running.kill("engine-1")
        outcomes = await load
    results = Counter((outcome.kind, outcome.result) for outcome in outcomes)
    assert set(results) <= {("chat json", "200"), ("chat stream", "200"), ("chat stream", "0 connection_broken")}, results
    broken = [outcome for outcome in outcomes if not outcome.is_whole]
    assert broken
    assert {outcome.pod for outcome in broken} == {"engine-1"}
    assert all(outcome.first_token for outcome in broken)
