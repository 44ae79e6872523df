"""An engine that hangs, comes back, or dies: what its clients are told, and what becomes of the pod."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil
import pytest

from tests.contract.asking import CHAT, body, metric, until_metric
from tests.contract.test_draining import asked, error_in
from tests.drills.load import show
from tests.faults import set_faults
from tests.running import DEADLINE_SECONDS, running_pods, until

if TYPE_CHECKING:
    from pathlib import Path

STALL_SECONDS = 2.5
LIMITS: dict[str, Any] = {
    "queue_timeout_seconds": 0.5,
    "keepalive_seconds": 1,
    "first_token_timeout_seconds": 1.5,
    "hang_timeout_seconds": 2,
    "stall_timeout_seconds": STALL_SECONDS,
}
HANG = {"*": {"failure": "hang"}}
MESSAGE = f"The engine brought no token for STALL_TIMEOUT_SECONDS={STALL_SECONDS:g}"


async def begun(session: aiohttp.ClientSession, **more: Any) -> asyncio.Task[tuple[int, dict[str, Any], bytes]]:
    """A stream that has its first token; the task reads it to its end."""
    response = await session.post(CHAT, json=body(**more))

    async def rest() -> tuple[int, dict[str, Any], bytes]:
        async with response:
            raw = await response.read()
        return response.status, error_in(raw), raw

    return asyncio.create_task(rest())


async def test_a_hung_engine_ends_its_requests_and_is_not_ready_until_it_works_again(tmp_path: Path) -> None:
    """JSON is 500, which Envoy tries elsewhere; a stream that has begun gets a last event; what waits is handed back; then all is well."""
    faults = tmp_path / "faults.json"
    with running_pods(1, fake_faults_file=faults, **LIMITS) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            stream = await begun(session, max_tokens=4000, ignore_eos=True)
            set_faults(faults, HANG)
            start = time.monotonic()
            status, error, raw = await asked(session, stream=False)
            assert (status, error["code"], error["message"]) == (500, "engine_error", MESSAGE)
            assert STALL_SECONDS * 0.9 <= time.monotonic() - start < STALL_SECONDS * 3
            status, error, raw = await asyncio.wait_for(stream, DEADLINE_SECONDS)
            assert (status, error["code"], error["message"], b"[DONE]" in raw) == (200, "engine_error", MESSAGE, False)
            assert raw.count(b": keepalive\n\n") >= 1, "a silent stream says that it is alive"
            told = pods.readiness(pods.url)
            assert (told["state"], told["progress"]) == ("stalled", MESSAGE)
            assert await metric(session, pods.url, 'llm_pod_state.*"stalled".*') == 1
            assert await metric(session, pods.url, "llm_stalls_total") == 2
            status, error, _ = await asked(session, stream=False)
            assert (status, error["code"]) == (503, "not_ready")
            set_faults(faults, {})
            pods.until_ready(1)
            assert (await asked(session))[2].endswith(b"data: [DONE]\n\n")
        assert pods.entry("engine-1")["restarts"] == 0


async def test_what_waits_for_a_hung_engine_is_handed_back(tmp_path: Path) -> None:
    """When the slot of a stalled request comes free, the queue hears that the pod is not ready instead of hanging in its turn."""
    faults = tmp_path / "faults.json"
    set_faults(faults, HANG)
    # The queue's limit is below that of stalls, so who waits when an engine is found to hang came later than the request that hangs.
    limits = {"queue_timeout_seconds": 3, "keepalive_seconds": 3.1, "first_token_timeout_seconds": 3.2, "hang_timeout_seconds": 3.3}
    with running_pods(1, fake_faults_file=faults, max_concurrent_requests=1, stall_timeout_seconds=4.5, **limits) as pods:
        async with aiohttp.ClientSession(pods.url) as session, session.post(CHAT, json=body()) as running:
            assert await running.content.readline() == b": keepalive\n"
            queued = [asyncio.create_task(asked(session, stream=False)) for _ in range(3)]
            assert b'"engine_error"' in await asyncio.wait_for(running.read(), DEADLINE_SECONDS)
            outcomes = await asyncio.wait_for(asyncio.gather(*queued), DEADLINE_SECONDS)
            assert [(status, error["code"]) for status, error, _ in outcomes] == [(503, "not_ready")] * 3


async def test_an_engine_that_does_not_come_back_ends_its_pod(tmp_path: Path) -> None:
    """Within the limit once more the process ends and says why; the runner's next pod serves."""
    faults = tmp_path / "faults.json"
    with running_pods(1, fake_faults_file=faults, **LIMITS) as pods:
        set_faults(faults, HANG)
        async with aiohttp.ClientSession(pods.url) as session:
            assert (await asked(session, stream=False))[0] == 500
            stalled_at = time.monotonic()
            until(lambda: pods.entry("engine-1").get("restarts") == 1, pods.log)
            assert time.monotonic() - stalled_at < STALL_SECONDS * 3
            assert pods.entry("engine-1")["last_exit"].startswith("exit code 5: the engine stalled: no token for STALL_TIMEOUT_SECONDS=2.5")
            set_faults(faults, {})
            pods.until_ready(1)
        async with aiohttp.ClientSession(pods.url) as session:
            assert (await asked(session))[0] == 200


async def test_one_request_that_hangs_alone_costs_nobody_else_anything(tmp_path: Path) -> None:
    """While others get their tokens the pod stays ready; a request that hangs on an idle engine does not end the pod."""
    faults = tmp_path / "faults.json"
    set_faults(faults, {"*": {"failure": "hang", "prompt": "poison"}})
    poison = {"messages": [{"role": "user", "content": "poison"}], "stream": False}
    with running_pods(1, fake_faults_file=faults, fake_tokens_per_second=20, **LIMITS) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            others = asyncio.create_task(asked(session, max_tokens=100, ignore_eos=True))
            await until_metric(session, pods.url, "llm_slots_in_use", 1)
            assert (await asked(session, **poison))[0] == 500
            assert '"stalled"' not in pods.log()
            assert (await others)[2].endswith(b"data: [DONE]\n\n")
            assert (await asked(session, **poison))[0] == 500
            pods.until_ready(1)
            assert '"stalled"' in pods.log()
        assert pods.entry("engine-1")["restarts"] == 0


async def test_a_long_prefill_is_no_stall() -> None:
    """A first token may take all but the limit, each on its own clock: three that take two thirds of it one after the other in a slot."""
    with running_pods(
        1, max_concurrent_requests=1, fake_first_token_ms=STALL_SECONDS * 600, **(LIMITS | {"queue_timeout_seconds": 0.9})
    ) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            for _ in range(3):
                assert (await asked(session, stream=False))[0] == 200
        assert '"stalled"' not in pods.log()


async def test_a_machine_that_slept_has_not_stalled() -> None:
    """A pod that was stopped for longer than the limit goes on where it was: time counts while it runs."""
    with running_pods(1, fake_tokens_per_second=0.7, **LIMITS) as pods:  # slower than the watchdog looks, which is first to wake
        processes = [psutil.Process(pid) for pid in (pods.process.pid, pods.entry("engine-1")["pid"])]
        async with aiohttp.ClientSession(pods.url) as session, session.post(CHAT, json=body(max_tokens=6, ignore_eos=True)) as stream:
            await stream.content.readline()
            for process in processes:  # the runner first, which would take the pod for dead
                process.suspend()
            await asyncio.sleep(STALL_SECONDS * 1.5)  # the time itself is what is tested
            processes[1].resume()
            assert (await asyncio.wait_for(stream.read(), DEADLINE_SECONDS)).endswith(b"data: [DONE]\n\n")
            assert pods.readiness(pods.url)["state"] == "ready"
            processes[0].resume()
        assert '"stalled"' not in pods.log()


async def test_an_engine_that_dies_takes_its_pod_along(tmp_path: Path) -> None:
    """Its requests hear of it as an error, the exit code and the runner say why, and the next pod is there at once."""
    faults = tmp_path / "faults.json"
    with running_pods(1, fake_faults_file=faults) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            stream = await begun(session, max_tokens=4000, ignore_eos=True)
            died_at = time.monotonic()
            set_faults(faults, {"*": {"failure": "die"}})
            status, error, raw = await asyncio.wait_for(stream, DEADLINE_SECONDS)
            assert (status, error["code"], b"[DONE]" in raw) == (200, "engine_error", False)
            set_faults(faults, {})
            until(lambda: pods.entry("engine-1").get("restarts") == 1, pods.log)
            assert time.monotonic() - died_at < 3 * 2.0
        assert pods.entry("engine-1")["last_exit"] == "exit code 4: the engine died: EngineDeath: the fake engine was told to die"
        pods.until_ready(1)


def test_a_warm_up_that_fails_is_a_load_that_fails() -> None:
    """The runner gives up and prints why."""
    with running_pods(0, pods=1, fake_failure="warm_up") as pods:
        assert pods.process.wait(DEADLINE_SECONDS) == 1
        assert "engine: the warm-up failed: the fake engine was told to fail (error)" in pods.log()


@pytest.mark.model
async def test_the_first_client_does_not_pay_for_the_first_generation() -> None:
    """Before a pod is ready it has generated; the first request's prefill is then like the next ones', on one pod of three at least.

    In quiet runs it took 1.7 to 6 times as long without the warm-up, and 0.9 to 1.4 times with it.
    """
    ratios = []
    with running_pods(3, engine="transformers", num_threads=1) as pods:
        for url in pods.urls:
            async with aiohttp.ClientSession(url) as session:
                first, *others = [await prefill_ms(session) for _ in range(9)]
            ratios.append(first / statistics.median(others))
        log = (pods.state_dir / "runner.log").read_text()
        assert log.count('"tokens":4,"event":"pod.warmed_up"') == 3
    show(f"the first request's first token took {[round(ratio, 2) for ratio in ratios]} times as long as the next ones'")
    assert min(ratios) < 1.6


async def prefill_ms(session: aiohttp.ClientSession) -> float:
    """How long the pod took from a slot to the first token, in its own word: connecting, and this process, are left out."""
    async with session.post(CHAT, json=body(max_tokens=3, temperature=0)) as response:
        await response.read()
        return float(response.headers["Server-Timing"].rpartition("prefill;dur=")[2])


async def test_who_waits_in_a_busy_engine_has_not_stalled() -> None:
    """BATCHING=window: a request that comes while a batch runs is answered after it, however long that takes."""
    with running_pods(1, **(LIMITS | {"engine": "transformers", "batching": "window"})) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            stream = await begun(session, max_tokens=2000, ignore_eos=True, model="demo")
            start = time.monotonic()
            late = asyncio.create_task(asked(session, stream=False, model="demo"))
            status, _, raw = await asyncio.wait_for(stream, 2 * DEADLINE_SECONDS)
            assert (status, raw.endswith(b"data: [DONE]\n\n")) == (200, True)
            assert time.monotonic() - start > STALL_SECONDS * 1.5
            assert (await late)[0] == 200
