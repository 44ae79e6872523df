"""Who was refused and told when to return: a queue whose places are with the clients, and expire.

Whoever returns as told has waited already, so it goes before those that come for the first time; a newcomer is told a time behind all of
them. How many do return is learnt: for those who never will nobody shall wait.
"""

from __future__ import annotations

import heapq
import random

from msgspec import Struct

# Clients and networks are late by a little, and most clients know whole seconds only.
_GRACE_SECONDS = 2.0
_GRACE_SHARE = 0.25
_EARLY_SECONDS = 0.1
# Refused clients shall not come back together, nor much later than they could.
_JITTER_SHARE = 0.1
_MAX_KEPT = 20_000
_LEARNING = 0.02


class _Promise(Struct):
    due_at: float
    expires_at: float
    seconds: float


class Promises:
    """What is promised and not yet kept or expired. Times are on the clock of `time.monotonic()`."""

    def __init__(self, seed: int | None = None) -> None:
        """Until it is known better, everybody is taken to return; `seed` is for tests."""
        self._kept: dict[int, _Promise] = {}
        self._expiries: list[tuple[float, int]] = []
        self._seconds = 0.0
        self._share = 1.0
        self._random = random.Random(seed)

    def __len__(self) -> int:
        """How many are to return."""
        return len(self._kept)

    def backlog_seconds(self, now: float) -> float:
        """Slot seconds of work that those who were told to return will bring."""
        self._expire(now)
        return self._seconds * self._share

    def make(self, fingerprint: int, wait: float, seconds: float, now: float) -> float:
        """Promises a request of so many slot seconds a place in `wait` seconds; returns what to tell, spread a little."""
        told = wait * (1 + _JITTER_SHARE * self._random.random())
        self._drop(fingerprint)
        if fingerprint and len(self._kept) < _MAX_KEPT:
            expires_at = now + told * (1 + _GRACE_SHARE) + _GRACE_SECONDS
            self._kept[fingerprint] = _Promise(now + told, expires_at, seconds)
            self._seconds += seconds
            heapq.heappush(self._expiries, (expires_at, fingerprint))
        return told

    def claim(self, fingerprint: int, now: float) -> bool:
        """Whether this request returns as it was told; its promise is kept by that. One that comes too early keeps its promise."""
        self._expire(now)
        promise = self._kept.get(fingerprint)
        if promise is None or now < promise.due_at - _EARLY_SECONDS:
            return False
        self._drop(fingerprint)
        self._share += _LEARNING * (1 - self._share)
        return True

    def _expire(self, now: float) -> None:
        while self._expiries and self._expiries[0][0] <= now:
            expires_at, fingerprint = heapq.heappop(self._expiries)
            promise = self._kept.get(fingerprint)
            if promise is not None and promise.expires_at == expires_at:  # not one that was told anew since
                self._drop(fingerprint)
                self._share -= _LEARNING * self._share

    def _drop(self, fingerprint: int) -> None:
        promise = self._kept.pop(fingerprint, None)
        if promise is not None:
            self._seconds = max(0.0, self._seconds - promise.seconds)
