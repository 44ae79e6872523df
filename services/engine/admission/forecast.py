"""When a slot will be free: those that run, and those that wait before, are played through on as many slots as there are."""

from __future__ import annotations

import heapq
from math import ceil
from typing import TYPE_CHECKING

from services.engine.admission.lengths import Lengths
from services.engine.admission.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.engine.admission.ticket import Ask, Ticket

# A run that is over its expected end will end some time; how soon nobody knows, but hardly at this very moment.
_MIN_LEFT_TOKENS = 1.0
_LIKELY_TOKENS = 512


class Forecast:
    """What was seen of the engine, and what follows from it. Knows nothing (None) before the first answer."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self.pace = Pace()
        self.lengths = Lengths()

    def num_tokens(self, ask: Ask, so_far: int = 0) -> float:
        """Tokens that the answer will have, given that `so_far` came: what it may have, while nobody knows better."""
        if ask.is_exact:
            return ask.max_tokens
        expected = self.lengths.expected(ask.client, ask.max_tokens, so_far)
        return ask.max_tokens if expected is None else expected

    def likely_tokens(self, ask: Ask) -> int:
        """The same for an engine that can bear a mistake: where nobody knows, not all that the answer may have."""
        expected = None if ask.is_exact else self.lengths.expected(ask.client, ask.max_tokens, 0)
        return min(ask.max_tokens, _LIKELY_TOKENS if expected is None else ceil(expected))

    def seconds(self, ask: Ask) -> float | None:
        """How long a request will hold its slot."""
        if not self.pace.is_known:
            return None
        return self.pace.prefill_seconds(ask.num_prompt_tokens) + max(0.0, self.num_tokens(ask) - 1) * self.pace.token_seconds()

    def seconds_left(self, ticket: Ticket, now: float) -> float:
        """How much longer a run will hold its slot."""
        left = max(_MIN_LEFT_TOKENS, self.num_tokens(ticket.ask, ticket.num_tokens) - max(1, ticket.num_tokens)) * self.pace.token_seconds()
        if ticket.first_token_at:
            return left
        return left + max(0.0, self.pace.prefill_seconds(ticket.ask.num_prompt_tokens) - (now - ticket.started_at))

    def rough_wait(self, running: Iterable[Ticket], seconds_before: float, slots: int, now: float) -> float | None:
        """The same from the sum of slot seconds before alone: for queues too long to be played through."""
        if not self.pace.is_known:
            return None
        return (sum(self.seconds_left(ticket, now) for ticket in running) + seconds_before) / slots

    def wait(self, running: Iterable[Ticket], before: Iterable[Ticket], slots: int, now: float) -> float | None:
        """Seconds until a slot is free for the one who comes after `before`; None while nobody can know."""
        if not self.pace.is_known:
            return None
        free_at = [self.seconds_left(ticket, now) for ticket in running]
        free_at += [0.0] * (slots - len(free_at))
        heapq.heapify(free_at)
        for ticket in before:
            seconds = ticket.predicted_seconds
            heapq.heapreplace(free_at, free_at[0] + (self.seconds(ticket.ask) or 0.0 if seconds is None else seconds))
        return free_at[0]
