"""A drill of `services/ops/drills` carried out under load: 20 requests a second, JSON and streams, each counted by its client."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.ops.drills.drill import carry_out
from services.ops.load.arrivals import steady
from services.ops.load.client import run_load
from services.ops.load.kinds import chat
from tests.drills.load import show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.ops.drills.drill import Drill
    from services.ops.load.outcome import Outcome
    from tests.drills.fleet import Fleet

PER_SECOND = 20.0
TOKENS = 60
"""Of each answer; at the fake engine's pace, 0.3 s."""
LIMIT_SECONDS = 30.0
SECONDS_BEFORE, SECONDS_AFTER = 2, 1


@dataclass
class Counted:
    """What the clients saw."""

    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def lost(self) -> list[Outcome]:
        """Requests without a whole answer."""
        return [one for one in self.outcomes if not one.is_whole]

    @property
    def failed(self) -> list[Outcome]:
        """Those of them that had no first token: what a retry must save."""
        return [one for one in self.lost if one.first_token is None]

    def told(self) -> str:
        """In one line."""
        lost = dict(Counter(one.result for one in self.lost))
        twice = sum(one.attempts > 1 for one in self.outcomes)
        longest = max(one.latency for one in self.outcomes)
        return (
            f"{len(self.outcomes)} requests, {len(self.failed)} failed, {len(self.lost) - len(self.failed)} streams broken {lost or ''}, "
            f"{twice} asked twice, longest {longest:.1f} s; drill over after {self.seconds:.1f} s"
        )

    def assert_honest(self) -> None:
        """Nothing looks whole that is not, and nobody was asked more than twice."""
        short = [one for one in self.outcomes if one.is_whole and one.tokens != TOKENS]
        assert short == [], f"{len(short)} answers look whole and are not: {short[0]}"
        silent = [one for one in self.lost if one.result == "200 cut_off"]
        assert silent == [], f"{len(silent)} streams stop without a word: {silent[0]}"
        assert max(one.attempts for one in self.outcomes) <= 2, self.told()


async def drilled(started: Fleet, drill: Drill, meanwhile: Sequence[str] = ("hi",)) -> Counted:
    """Carries the drill out in the middle of a load, which has the prompts `meanwhile` as long as the fault lasts."""
    counted, over = Counted(), asyncio.Event()

    async def ask_on() -> list[list[Outcome]]:
        """One second of load after the other, each with its own clients, none waiting for the one before."""
        loads: list[asyncio.Task[list[Outcome]]] = []
        left = SECONDS_AFTER
        while left:
            prompts = meanwhile if begun.is_set() and not over.is_set() else ["hi"]
            mix = [chat(is_stream=is_stream, prompts=prompts, max_tokens=TOKENS) for is_stream in (False, True)]
            loads.append(asyncio.create_task(run_load(started.edge.url, mix, [steady(PER_SECOND, 1)], seed=len(loads), time_limit=60)))
            left -= over.is_set()
            if len(loads) == SECONDS_BEFORE:
                begun.set()
            await asyncio.sleep(1)
        return await asyncio.gather(*loads)

    begun = asyncio.Event()
    asking = asyncio.create_task(ask_on())
    try:
        await begun.wait()
        counted.seconds = await asyncio.to_thread(carry_out, drill, LIMIT_SECONDS)
    finally:
        over.set()
        counted.outcomes = [one for outcomes in await asking for one in outcomes]
    show(f"{drill.name}: {counted.told()}")
    counted.assert_honest()
    return counted
