"""Two of the drills once more with the engine that users run and the demo model."""

from __future__ import annotations

import pytest

from tests.drills.fleet import LIMITS, fleet
from tests.drills.test_deaths import a_kill_loses_nothing
from tests.drills.test_silence import streams_move_on_before_the_watchdog

pytestmark = [pytest.mark.stack, pytest.mark.model, pytest.mark.asyncio]


async def test_the_real_engine_freezes_and_is_killed() -> None:
    """One of two pods stops for good, comes back, and is killed at work: nothing is lost.

    The JSON answers take seconds, so the killed pod holds half of them; its streams have begun by then, and would break.
    """
    async with fleet(2, engine="transformers", num_threads=1, max_concurrent_requests=24, **LIMITS) as started:
        await streams_move_on_before_the_watchdog(started, 6)
        await started.until_whole()
        await a_kill_loses_nothing(started, 24, 100, streams=False)
