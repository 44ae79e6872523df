"""Pods that die: killed from outside, or by what they are asked."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.drills.fleet import fleet
from tests.drills.load import show, told

if TYPE_CHECKING:
    from tests.drills.fleet import Fleet

pytestmark = [pytest.mark.stack, pytest.mark.asyncio]

IN_FLIGHT = 200
ROOMY: dict[str, Any] = {"max_concurrent_requests": 256, "fake_first_token_ms": 2000}
NO_RETRIES_OF_RESETS = {"routes.yaml": {"reset-before-request,reset,": "reset-before-request,"}}


async def a_kill_loses_nothing(fleet: Fleet, in_flight: int, tokens: int, *, streams: bool = True) -> None:
    """Kills one of two pods that hold so many requests; none of them is lost."""
    asking = fleet.asking(tokens=tokens)
    asked = [asyncio.create_task(asking.ask(is_stream=streams and bool(number % 2))) for number in range(in_flight)]
    await fleet.until_in_flight(in_flight)
    fleet.kill("engine-1")
    answers = await asyncio.gather(*asked)
    show(f"killed: {told(answers)}")
    assert all(answer.is_whole for answer in answers), told(answers)
    assert "2" in {answer.attempts for answer in answers}
    assert {answer.pod for answer in answers if answer.attempts == "2"} == {"engine-2"}


async def test_a_killed_pod_loses_nothing() -> None:
    """200 requests in flight on two pods, one is killed.

    Hypothesis: what has no first token yet is asked again elsewhere, however much it is. Inject: SIGKILL. Client: 200 whole answers, those
    of the dead pod with attempts 2. Heal: the runner starts the pod again.
    """
    async with fleet(2, **ROOMY) as started:
        await a_kill_loses_nothing(started, IN_FLIGHT, 20)
        await started.until_whole()


async def test_the_drill_fails_without_retries_of_resets() -> None:
    """Without them, every request in the dead pod is lost."""
    async with fleet(2, edit=NO_RETRIES_OF_RESETS, **ROOMY) as started:
        with pytest.raises(AssertionError, match="lost"):
            await a_kill_loses_nothing(started, IN_FLIGHT, 20)


async def test_poison_kills_two_pods_and_no_more() -> None:
    """A request on which pods die.

    Hypothesis: it is tried twice, so two pods of three die of it and come back. Inject: `exit` for one prompt. Client: 500 `engine_error`
    for the poison, attempts 2. Innocents in the first pod are asked again; those that meet the second death are lost with the same error
    (503 where the second pod was gone already when they came), and counted in `envoy_cluster_upstream_rq_retry_limit_exceeded`.
    Heal: the runner starts both again.
    """
    async with fleet(3, **ROOMY) as started:
        started.fail(all={"failure": "exit", "prompt": "poison"})
        before = await started.count("upstream_rq_retry_limit_exceeded")
        innocents = [asyncio.create_task(started.asking().ask(is_stream=bool(number % 2))) for number in range(150)]
        await started.until_in_flight(150)
        poison = await started.asking(prompt="poison").ask()
        answers = await asyncio.gather(*innocents)
        lost = [answer for answer in answers if not answer.is_whole]
        counted = await started.count("upstream_rq_retry_limit_exceeded") - before
        show(f"poison: {poison.status} {poison.code}; innocents: {told(answers)}; counted by Envoy: {counted}")
        assert (poison.status, poison.code, poison.pod, poison.attempts) == (500, "engine_error", "edge", "2")
        kinds = {(answer.status, answer.code, answer.attempts) for answer in lost}
        assert kinds <= {(500, "engine_error", "2"), (503, "no_healthy_engine", "2")}
        assert counted == len(lost) + 1
        await started.until_whole()
        assert sorted(entry["restarts"] for entry in started.pods.entries) == [0, 1, 1]
        assert all(answer.is_whole for answer in await started.asking().open_loop(30, 100))
