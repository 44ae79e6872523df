"""The order of those who wait: the more urgent first, then fairly between clients, then as they came.

Within a priority it is deficit round robin (Shreedhar and Varghese, 1995) over tokens: in each round every client may spend as many tokens
as any other, saved up until they pay for its next request. Who waits with one short request is not behind somebody's thousand long ones.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from services.engine.admission.ticket import PRIORITIES, Ticket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.engine.admission.ticket import Priority


class _Level:
    """Those of one priority."""

    def __init__(self) -> None:
        self.queues: dict[str, deque[Ticket]] = {}
        self.ring: deque[str] = deque()
        self.savings: dict[str, float] = {}

    def copy(self) -> _Level:
        """One that can be emptied without harm to this one."""
        other = _Level()
        other.queues = {name: queue.copy() for name, queue in self.queues.items()}
        other.ring, other.savings = self.ring.copy(), self.savings.copy()
        return other

    def push(self, ticket: Ticket) -> None:
        """Behind its client's others."""
        name = ticket.ask.client
        if name not in self.queues:
            self.queues[name] = deque()
            self.ring.append(name)
            self.savings[name] = 0.0
        self.queues[name].append(ticket)

    def first(self) -> Ticket:
        """Whose turn it is; there must be somebody."""
        while True:
            for _ in range(len(self.ring)):
                name = self.ring[0]
                ticket = self.queues[name][0]
                if self.savings[name] >= ticket.cost:
                    return ticket
                self.ring.rotate(-1)
            self._next_round()

    def take_first(self) -> Ticket:
        """Takes it out, paid for by its client."""
        ticket = self.first()
        self.savings[ticket.ask.client] -= ticket.cost
        self.remove(ticket)
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Takes one out that was not served; a client that has no other loses what it had saved."""
        name = ticket.ask.client
        queue = self.queues[name]
        queue.remove(ticket)
        if not queue:
            del self.queues[name], self.savings[name]
            self.ring.remove(name)

    def _next_round(self) -> None:
        """Gives everybody as many tokens as the first of them needs: rounds of one token, those skipped in which nobody can pay."""
        short = min(queue[0].cost - self.savings[name] for name, queue in self.queues.items())
        for name in self.savings:
            self.savings[name] += max(1, math.ceil(short))


class FairQueue:
    """Everybody who waits. It bounds nothing."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._levels: dict[Priority, _Level] = {priority: _Level() for priority in PRIORITIES}
        self._size = 0
        self.num_bytes = 0
        """What all of them hold in memory."""
        self.seconds = 0.0
        """Slot seconds that all of them are predicted to take."""

    def __len__(self) -> int:
        """How many wait."""
        return self._size

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self._levels[ticket.ask.priority].queues.get(ticket.ask.client, ())

    def push(self, ticket: Ticket) -> None:
        """One more."""
        self._levels[ticket.ask.priority].push(ticket)
        self._size += 1
        self.num_bytes += ticket.ask.num_bytes
        self.seconds += ticket.predicted_seconds or 0.0

    def first(self) -> Ticket | None:
        """Whose turn it is."""
        return next((level.first() for level in self._levels.values() if level.queues), None)

    def take_first(self) -> Ticket:
        """Takes it out; there must be one."""
        level = next(level for level in self._levels.values() if level.queues)
        return self._forget(level.take_first())

    def remove(self, ticket: Ticket) -> None:
        """Takes out one that leaves unserved."""
        self._levels[ticket.ask.priority].remove(ticket)
        self._forget(ticket)

    def in_order(self) -> Iterator[Ticket]:
        """Everybody, in the order in which they will be served if nobody comes or goes."""
        for level in self._levels.values():
            copy = level.copy()
            while copy.queues:
                yield copy.take_first()

    def least_worthy(self, ticket: Ticket) -> Ticket | None:
        """Who must leave a full queue for `ticket`, or None if nobody has less right to a place.

        That is the last one of a lower priority, or of the client of the same priority that has the most places, if that is at least two
        more than the newcomer's client has: a flood pushes out itself, not others.
        """
        for priority in reversed(PRIORITIES):
            if priority == ticket.ask.priority:
                break
            if queues := self._levels[priority].queues:
                return max(queues.values(), key=len)[-1]
        queues = self._levels[ticket.ask.priority].queues
        longest = max(queues.values(), key=len, default=deque[Ticket]())
        return longest[-1] if len(longest) >= len(queues.get(ticket.ask.client, ())) + 2 else None

    def places(self) -> dict[tuple[Priority, str], int]:
        """How many wait, by priority and client."""
        return {(priority, name): len(queue) for priority, level in self._levels.items() for name, queue in level.queues.items()}

    def _forget(self, ticket: Ticket) -> Ticket:
        self._size -= 1
        self.num_bytes -= ticket.ask.num_bytes
        self.seconds = max(0.0, self.seconds - (ticket.predicted_seconds or 0.0)) if self._size else 0.0
        return ticket
