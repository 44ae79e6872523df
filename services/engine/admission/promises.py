"""Who was refused and told when to return: a queue whose places are with the clients, and expire.

Whoever returns as told has waited already, so it goes before those that come for the first time; a newcomer is told a time behind all of
them. How many do return is learnt: for those who never will nobody shall wait.
"""

from __future__ import annotations

import heapq
import random
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from services.engine.admission.ticket import Ask

# Clients and networks are late by a little, and most clients know whole seconds only.
_GRACE_SECONDS = 2.0
_GRACE_SHARE = 0.25
_EARLY_SECONDS = 0.1
# Refused clients shall not come back together, nor much later than they could.
_JITTER_SHARE = 0.1
_MAX_KEPT = 50_000
_LEARNING = 0.02
_PRIOR = 1 / _LEARNING
"""As sure as of so many that all will come, until it is known better."""


def window(told: float, now: float) -> tuple[float, float]:
    """From when and until when a request that was told to return in `told` seconds does so."""
    return now + told - _EARLY_SECONDS, now + told * (1 + _GRACE_SHARE) + _GRACE_SECONDS


class _Promise(Struct, eq=False):
    fingerprint: int
    due_at: float
    expires_at: float
    seconds: float
    came: bool | None = None
    """Whether it came; None of one that was told anew meanwhile, or is open."""


class Promises:
    """What is promised and not yet kept or expired. Times are on the clock of `time.monotonic()`."""

    def __init__(self, seed: int | None = None) -> None:
        """Until it is known better, everybody is taken to return; `seed` is for tests."""
        self._open: dict[int, _Promise] = {}
        self._ends: list[tuple[float, int, _Promise | None]] = []
        self._num_made = 0
        self._seconds = 0.0
        self._due = self._came = _PRIOR
        self._is_shared = False
        self._mean_grace = _GRACE_SECONDS
        self._random = random.Random(seed)

    def __len__(self) -> int:
        """How many are to return."""
        return len(self._open)

    def backlog_seconds(self, now: float) -> float:
        """Slot seconds of work that those who were told to return will bring."""
        self._expire(now)
        return self._seconds * self._came / self._due

    def make(self, ask: Ask, wait: float, seconds: float, now: float) -> float:
        """Promises a request of so many slot seconds a place in `wait` seconds; returns what to tell, spread a little."""
        if ask.attempt > 1 and not self._is_shared:
            # Another pod has refused it, too, and promised it the same; it will return to one of the two.
            self._is_shared, self._came = True, self._came / 2
        told = wait * (1 + _JITTER_SHARE * self._random.random())
        self._close(ask.fingerprint)
        if ask.fingerprint and len(self._ends) < _MAX_KEPT:
            due_at, expires_at = window(told, now)
            promise = self._open[ask.fingerprint] = _Promise(ask.fingerprint, due_at, expires_at, seconds)
            self._seconds += seconds
            self._mean_grace += _LEARNING * (expires_at - due_at - self._mean_grace)
            self._note_end(expires_at, promise)
        return told

    def claim(self, ask: Ask, now: float) -> bool:
        """Whether this request returns as it was told, here or by another pod; its promise is kept by that.

        One that comes too early keeps its promise.
        """
        if not self._open and not ask.is_promised:
            return False
        self._expire(now)
        promise = self._open.get(ask.fingerprint)
        if not ask.is_promised and (promise is None or now < promise.due_at):
            return False
        if promise is None:
            self._note_end(now + self._mean_grace, None)
        self._close(ask.fingerprint, came=True)
        return True

    def _note_end(self, at: float, promise: _Promise | None) -> None:
        self._num_made += 1
        heapq.heappush(self._ends, (at, self._num_made, promise))

    def _expire(self, now: float) -> None:
        """Learns who came and who did not.

        Of all that were told alike at the same time: those who come are known sooner than those who never will. None is one that came
        here while others had told it so: as many come from other pods as go to them.
        """
        while self._ends and self._ends[0][0] <= now:
            promise = heapq.heappop(self._ends)[2]
            if promise is None:
                self._came += 1
                continue
            if self._open.get(promise.fingerprint) is promise:
                self._close(promise.fingerprint, came=False)
            if promise.came is not None:
                self._due = self._due * (1 - _LEARNING) + 1
                self._came = self._came * (1 - _LEARNING) + promise.came

    def _close(self, fingerprint: int, *, came: bool | None = None) -> None:
        promise = self._open.pop(fingerprint, None)
        if promise is not None:
            promise.came = came
            self._seconds = max(0.0, self._seconds - promise.seconds)
