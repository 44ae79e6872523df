"""Pods are added and taken away, as `convoy scale` does: to four, to one, and back to as many as there were.

Hypothesis: a new pod gets requests when it is ready, one that goes drains, so no request fails.
"""

from __future__ import annotations

import time

from services import pods_wanted
from services.ops import probe
from services.ops.drills.drill import Drill

MOST, FEWEST = 4, 1
HOLD_SECONDS = 2.0
"""So long each number lasts: all of them shall have answered something."""


class Scaled(Drill):
    """Other numbers of pods. The pod that a drill names is one that stays."""

    name = "scaled"
    _there_at = 0.0

    def inject(self) -> None:
        """Asks for the most."""
        self._number_before = len(self.staying())
        self._want(MOST)

    def has_struck(self) -> bool:
        """There were as many, and then as few."""
        if not self._are_there():
            return False
        self._there_at = self._there_at or time.monotonic()
        if time.monotonic() - self._there_at < HOLD_SECONDS:
            return False
        if self._wanted == FEWEST:
            return True
        self._want(FEWEST)
        return False

    def heal(self) -> None:
        """Asks for the number from before."""
        self._want(self._number_before)

    def is_steady(self) -> bool:
        """All from before serve."""
        return self._are_there()

    def _want(self, number: int) -> None:
        self._wanted, self._there_at = number, 0.0
        pods_wanted.write_number(self.state_dir, number)
        self.tell_runner()

    def _are_there(self) -> bool:
        entries = self.known().pods
        ready = [told.state == "ready" for told in probe.readiness(entries)]
        return len(entries) == self._wanted and all(ready)
