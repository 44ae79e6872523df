"""A pod that answers errors to everything, on /readyz still well."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.drills.fleet import fleet
from tests.drills.load import show, told
from tests.stack.envoy_clients import is_true
from tests.stack.harness import until

if TYPE_CHECKING:
    from tests.drills.fleet import Fleet
    from tests.drills.load import Answer

pytestmark = [pytest.mark.stack, pytest.mark.asyncio]

EJECT_AFTER = 5
NO_RETRIES_OF_5XX = {"routes.yaml": {"retriable_status_codes: [429, 500, 502, 503]": "retriable_status_codes: [429]"}}
NO_EJECTION = {
    "clusters.yaml": {
        "enforcing_consecutive_gateway_failure: 100": "enforcing_consecutive_gateway_failure: 0\n    enforcing_consecutive_5xx: 0"
    }
}


async def _errors_are_hidden(fleet: Fleet, failure: str) -> int:
    """Clients see nothing of a failing pod, which is ejected within EJECT_AFTER_ERRORS of its requests; how many it had."""
    fleet.fail(engine_1={"failure": failure})
    asking = fleet.asking(tokens=2)
    answers: list[Answer] = []
    while not await fleet.count("outlier_detection.ejections_active"):
        answers.append(await asking.ask(is_stream=bool(len(answers) % 2)))
        assert answers[-1].is_whole, f"{answers[-1].status} {answers[-1].code} after {told(answers)}"
        failed = sum(answer.attempts == "2" for answer in answers)
        assert failed <= EJECT_AFTER, f"engine-1 failed {failed} times and is still asked"
    return failed


@pytest.mark.parametrize("failure", ["error", "unavailable"])
async def test_pod_of_errors_is_hidden_ejected_and_taken_back(failure: str) -> None:
    """A pod that answers 500, or 503, to everything.

    Hypothesis: retries hide it, ejection spares the retries, and a pod that comes back broken is left out for longer each time.
    Inject: `error` or `unavailable` on one of two pods. Client: 200, whole, at most 5 answers with `x-convoy-attempts: 2` a round.
    Heal: the fault ends while it is out; it gets requests again at the end of that pause.
    """
    async with fleet(2, ejection_seconds=1) as started:
        failed = await _errors_are_hidden(started, failure)
        traffic = asyncio.create_task(started.asking(tokens=2).open_loop(600, 100))
        pauses = [await started.pause_of("engine-1") for _ in range(2)]
        started.fail()
        healed = asyncio.create_task(started.pause_of("engine-1"))
        answers = await traffic
        show(f"{failure}: ejected after {failed}; pauses {[round(pause, 1) for pause in pauses]} s; {told(answers)}")
        assert all(answer.is_whole for answer in answers), told(answers)
        assert pauses[1] > pauses[0]
        healed.cancel()
        await started.until_whole()

        async def serves() -> bool:
            answer = await started.asking(tokens=2).ask()
            return (answer.pod, answer.attempts) == ("engine-1", "1")

        await until(serves, "requests at the healed pod")


@pytest.mark.parametrize("edit", [NO_RETRIES_OF_5XX, NO_EJECTION], ids=["no retries of 5xx", "no ejection"])
async def test_the_drill_fails_without_the_policy(edit: dict[str, dict[str, str]]) -> None:
    """Without retries of 5xx clients see the errors; without ejection the pod is asked on and on."""
    async with fleet(2, edit=edit) as started:
        with pytest.raises(AssertionError, match=r"^500 engine_error|still asked"):
            await _errors_are_hidden(started, "error")


async def test_a_lone_pod_is_never_ejected() -> None:
    """One pod that answers 500.

    Hypothesis: leaving it out would help nobody. Inject: `error` on the only pod. Client: the pod's own 500, attempts 1, never 503; it is
    never asked twice. Heal: the fault ends; the next request is answered.
    """
    async with fleet(1) as started:
        await until(
            lambda: is_true(started.edge.status.get("num_retries") == 0 and started.edge.is_agreed), "no retries where there is one pod"
        )
        started.fail(engine_1={"failure": "error"})
        answers = [await started.asking(tokens=2).ask() for _ in range(20)]
        assert {(answer.status, answer.code, answer.pod, answer.attempts) for answer in answers} == {(500, "engine_error", "engine-1", "1")}
        assert await started.count("outlier_detection.ejections_active") == 0
        started.fail()
        assert (await started.asking(tokens=2).ask()).is_whole


async def test_at_most_half_of_the_pods_are_ejected() -> None:
    """Every pod of three answers 500.

    Hypothesis: a pool that is ill as a whole is better asked than shut. Inject: `error` on all. Client: the second pod's own 500, attempts
    2. Heal: the fault ends; answers come at once, from the pods that stayed.
    """
    async with fleet(3) as started:
        started.fail(all={"failure": "error"})
        answers = await started.asking(tokens=2).open_loop(100, 100)
        assert {(answer.status, answer.code) for answer in answers} == {(500, "engine_error")}
        assert await started.count("outlier_detection.ejections_active") == 1
        assert await started.count("outlier_detection.ejections_overflow") > 0
        started.fail()
        assert (await started.asking(tokens=2).ask()).is_whole


async def test_refusals_eject_nobody() -> None:
    """Every pod is full.

    Hypothesis: 429 says busy, not broken. Inject: long streams in each slot of pods without a queue. Client: the pod's own 429 with its
    Retry-After, after both were asked; nobody is ejected. Heal: the streams end.
    """
    async with fleet(2, max_concurrent_requests=1, queue_capacity=0, fake_tokens_per_second=50) as started:
        held = [asyncio.create_task(started.asking(tokens=300).ask(is_stream=True)) for _ in range(2)]
        await started.until_in_flight(2)
        answers = await started.asking().open_loop(40, 100)
        refused = [answer for answer in answers if answer.status == 429]
        assert len(refused) == len(answers), told(answers)
        for answer in refused:
            assert (answer.code, answer.attempts) == ("queue_full", "2")
            assert answer.pod.startswith("engine-")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert await started.count("outlier_detection.ejections_active") == 0
        assert all(answer.is_whole for answer in await asyncio.gather(*held))
        assert (await started.asking(tokens=2).ask()).is_whole
