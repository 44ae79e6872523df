"""Pods that bring nothing: one stops for good, one is slow."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.drills.fleet import LIMITS, fleet
from tests.drills.load import show, told

if TYPE_CHECKING:
    from tests.drills.fleet import Fleet

pytestmark = [pytest.mark.stack, pytest.mark.asyncio]

MARGIN = 3  # the machine may be busy


async def streams_move_on_before_the_watchdog(fleet: Fleet, each: int) -> None:
    """Asks so many streams and so many JSON answers of two pods, one of them frozen."""
    asking = fleet.asking(tokens=5)
    fleet.kill("engine-1", signal.SIGSTOP)
    answers = await asyncio.gather(*(asking.ask(is_stream=bool(number % 2)) for number in range(2 * each)))
    show(f"frozen: {told(answers)}")
    assert all(answer.is_whole for answer in answers), told(answers)
    moved = {
        kind: sorted(answer.seconds for answer in answers if answer.is_stream == kind and answer.attempts == "2") for kind in (True, False)
    }
    show(f"moved on after: streams {moved[True][:1]} to {moved[True][-1:]}, JSON {moved[False][:1]} to {moved[False][-1:]}")
    assert moved[True]
    assert moved[False]
    first, hang = LIMITS["first_token_timeout_seconds"], LIMITS["hang_timeout_seconds"]
    assert first <= min(moved[True])
    assert max(moved[True]) < first * MARGIN
    assert max(moved[False]) < hang * MARGIN


async def test_a_frozen_pod_loses_nothing() -> None:
    """One of two pods stops for good.

    Hypothesis: streams go elsewhere after FIRST_TOKEN_TIMEOUT_SECONDS; JSON answers, which nobody can tell from slow ones, when the
    watchdog kills the pod after HANG_TIMEOUT_SECONDS. Inject: SIGSTOP. Client: all whole, attempts 2 where the pod was asked. Heal: the
    runner starts the pod again.
    """
    async with fleet(2, **LIMITS) as started:
        await streams_move_on_before_the_watchdog(started, 20)
        await started.until_whole()
        assert "HANG_TIMEOUT_SECONDS" in started.pods.entry("engine-1")["last_exit"]


async def test_a_slow_pod_gets_little() -> None:
    """One of three pods is ten times slower.

    Hypothesis: it has more requests than the others, so fewer new ones come. Inject: `slow`, factor 10. Client: all whole; at most half of
    a fair share of them came from the slow pod. Heal: the fault ends, the shares even out.
    """
    async with fleet(3, max_concurrent_requests=256) as started:
        started.fail(engine_1={"failure": "slow", "factor": 10})
        answers = await started.asking(tokens=20).open_loop(800, 120)
        shares = Counter(answer.pod for answer in answers)
        show(f"slow: {told(answers)}; {dict(shares)}")
        assert all(answer.is_whole for answer in answers), told(answers)
        assert shares["engine-1"] / len(answers) <= 1 / 3 / 2
        started.fail()
        again = Counter(answer.pod for answer in await started.asking(tokens=20).open_loop(240, 120))
        assert again["engine-1"] / again.total() > 1 / 3 / 2
