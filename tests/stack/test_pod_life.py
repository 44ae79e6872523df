"""The life of real pods behind a real Envoy: told to drain, hung, left by their clients, read by nobody."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from yarl import URL

from tests.contract.asking import CHAT, body, metric, unread, until_metric
from tests.contract.test_slow_readers import LARGE, SETTINGS, read_broken
from tests.drills.fleet import LIMITS, fleet
from tests.drills.load import show, told
from tests.stack.harness import until

if TYPE_CHECKING:
    from tests.drills.fleet import Fleet

pytestmark = [pytest.mark.stack, pytest.mark.asyncio]

LEAVE_SECONDS = 0.5
"""How soon after its client has left a request shall hold nothing any more; tests allow three times as much."""
ENDLESS: dict[str, Any] = {"max_tokens": 4000, "ignore_eos": True}


async def drain(fleet: Fleet, name: str) -> None:
    """Tells a pod to drain, on its own port."""
    async with fleet.edge.session.post(f"http://127.0.0.1:{fleet.pods.entry(name)['port']}/drain") as response:
        assert response.status == 202


async def test_drain_is_not_for_clients() -> None:
    """Through Envoy `/drain` does not exist, in whatever way it is written, and no pod drains."""
    async with fleet(1) as started:
        for path in ("/drain", "/drain/", "//drain", "/v1/../drain", "/%64rain", "/drain?now=1"):
            async with started.edge.session.post(URL(started.edge.url + path, encoded=True)) as response:
                assert response.status in {400, 404}, path
        assert started.pods.readiness(started.pods.url)["state"] == "ready"
        assert '"draining"' not in started.pods.log()


async def test_two_pods_of_three_that_drain_at_once_lose_nothing() -> None:
    """Under a steady load of JSON answers and streams, with requests queued: every one is answered whole."""
    async with fleet(3, max_concurrent_requests=3, queue_capacity=100, fake_tokens_per_second=100) as started:
        load = asyncio.create_task(started.asking(tokens=30).open_loop(200, 20))
        await started.until_in_flight(5)
        before = {name: started.pods.entry(name)["pid"] for name in ("engine-1", "engine-2")}
        await asyncio.gather(*(drain(started, name) for name in before))
        answers = await load
        show(f"two of three drained: {told(answers)}")
        assert all(answer.is_whole for answer in answers), told(answers)
        await until(lambda: replaced(started, before), "both pods replaced")
        assert {started.pods.entry(name)["last_exit"] for name in before} == {"exit code 0"}
        await started.until_whole()


async def replaced(fleet: Fleet, before: dict[str, int]) -> bool:
    """Whether other processes have these names now."""
    return all(fleet.pods.entry(name).get("pid") not in {None, pid} for name, pid in before.items())


async def test_a_hung_engine_costs_time_and_no_answer() -> None:
    """JSON answers of a pod whose engine hangs come from the other pod after STALL_TIMEOUT_SECONDS; meanwhile it gets nothing new.

    Then it works again, and serves again, without having been started anew.
    """
    limits = LIMITS | {"hang_timeout_seconds": 3, "stall_timeout_seconds": 4}
    async with fleet(2, **limits) as started:
        started.fail(engine_1={"failure": "hang"})
        answers = await asyncio.gather(*(started.asking(tokens=5).ask() for _ in range(12)))
        show(f"one engine of two hung: {told(answers)}")
        assert all(answer.is_whole for answer in answers), told(answers)
        moved = [answer for answer in answers if answer.attempts == "2"]
        assert moved
        assert {answer.pod for answer in moved} == {"engine-2"}
        assert max(answer.seconds for answer in moved) < 4 * 3
        await until(lambda: edge_says(started, "stalled"), "the edge knows that the pod stalled")
        await started.edge.until_healthy("engine-2")
        started.fail()
        await started.until_whole()
        assert started.pods.entry("engine-1")["restarts"] == 0


async def edge_says(fleet: Fleet, state: str) -> bool:
    """Whether a pod is in this state in the edge's word."""
    return state in [pod["state"] for pod in fleet.edge.status["pods"]]


@pytest.mark.parametrize("stream", [True, False])
async def test_who_leaves_frees_slot_and_place_at_once(stream: bool) -> None:
    """Through Envoy, running and queued, JSON and stream: half a second after the client has gone its request holds nothing."""
    async with fleet(1, max_concurrent_requests=1, fake_tokens_per_second=20) as started:
        pod, session = started.pods.url, started.edge.session

        async def ask() -> None:
            async with session.post(started.edge.url + CHAT, json=body(**ENDLESS, stream=stream)) as response:
                await response.read()

        running = asyncio.create_task(ask())
        await until_metric(session, pod, "llm_slots_in_use", 1)
        waiting = asyncio.create_task(ask())
        await until_metric(session, pod, "llm_queue_depth", 1)
        seconds = []
        for task, name in ((waiting, "llm_queue_depth"), (running, "llm_slots_in_use")):
            task.cancel()
            left_at = time.monotonic()
            await until_metric(session, pod, name, 0)
            seconds.append(time.monotonic() - left_at)
        await until_metric(session, pod, "llm_batch_size", 0)
        assert await metric(session, pod, 'llm_requests_total.*"cancelled".*') == 2
        show(f"left {'a stream' if stream else 'a JSON answer'}: queue free after {seconds[0]:.3f} s, slot after {seconds[1]:.3f} s")
        assert max(seconds) < LEAVE_SECONDS * 3


@pytest.mark.parametrize("stream", [True, False])
async def test_who_reads_nothing_is_ended(stream: bool) -> None:
    """What Envoy does not take from the pod is not kept: both connections end, the client's visibly broken."""
    tokens = 5_000_000  # 20 MB: more than Envoy and both kernels hold between a pod and its client
    async with fleet(1, **(SETTINGS | {"max_model_len": 2 * tokens})) as started:
        pod, session = started.pods.url, started.edge.session
        connection = unread(started.edge.url, **(LARGE | {"max_tokens": tokens}), stream=stream)
        if not stream:  # a stream may be ended while it is generated
            await until_metric(session, pod, "llm_generation_tokens_total", tokens)
        await until_metric(session, pod, "llm_slow_clients_total", 1)
        await until_metric(session, pod, "llm_slots_in_use", 0)
        await until_metric(session, pod, "llm_requests_in_progress", 0)
        raw = await asyncio.to_thread(read_broken, connection)
        assert not raw.endswith((b"0\r\n\r\n", b"}"))
