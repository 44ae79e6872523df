"""Tokens a second over the last steps of an engine."""

from __future__ import annotations

import math

# It follows the last seconds of work.
_SECONDS = 2.0


class Rate:
    """An average that forgets with the time that steps take; one thread only."""

    def __init__(self) -> None:
        """Nothing was seen."""
        self.per_second = 0.0

    def step(self, num_tokens: int, seconds: float) -> None:
        """A step took so long and brought so many."""
        share = 1 - math.exp(-seconds / _SECONDS)
        self.per_second += (num_tokens / max(seconds, 1e-6) - self.per_second) * share
