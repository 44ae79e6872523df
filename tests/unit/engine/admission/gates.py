"""What tests of the gate share: a gate, asks, and time that passes when the test says so."""

from __future__ import annotations

import asyncio
from typing import Any

from services.engine.admission import Admission, Ask, Limits, Priority, Ticket


class Clock:
    """Time that passes when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def admission(
    *, slots: int = 1, capacity: int | None = 2, timeout_seconds: float = 60, clock: Clock | None = None, **more: Any
) -> Admission:
    """One slot and two places unless told otherwise."""
    limits = Limits(slots=slots, capacity=capacity, timeout_seconds=timeout_seconds, **more)
    return Admission(limits, clock=clock) if clock else Admission(limits)


def ask(client: str = "", priority: Priority = "normal", *, tokens: int = 100, **more: Any) -> Ask:
    """An answer of exactly so many tokens."""
    return Ask(client=client, priority=priority, max_tokens=tokens, is_exact=True, **more)


def learn(gate: Admission, *, token_seconds: float = 0.01) -> None:
    """Shows the gate an engine that takes so long for each token, and nothing for a prompt."""
    pace = gate.forecast.pace
    pace.first_token(0.0, 1, 0.0)
    pace.tokens(0.0, 1)
    pace.end(token_seconds)


async def queued(gate: Admission, wanted: Ask) -> asyncio.Task[Ticket]:
    """A request that has its place in the queue."""
    before = gate.waiting
    task = asyncio.create_task(gate.acquire(wanted))
    await waiting(gate, before + 1)
    return task


async def waiting(gate: Admission, count: int) -> None:
    """Returns when `count` requests wait."""
    while gate.waiting != count:  # noqa: ASYNC110 - the test's own deadline ends it
        await asyncio.sleep(0)
