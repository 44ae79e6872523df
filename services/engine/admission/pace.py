"""How fast the engine is for one request among those that run beside it: seconds to the first token, and seconds for each one after it."""

from __future__ import annotations

import math

# What was seen so many seconds of work ago counts a third: long enough to be steady, short enough to follow a batch that fills.
_MEMORY_SECONDS = 3.0
# What so many first tokens ago was seen counts a third.
_MEMORY_PREFILLS = 32.0
_MIN_INTERVAL_SECONDS = 0.002


class Pace:
    """Takes part in every event of every run, so it is a few additions; sums fade, so that it follows the engine."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self._at = 0.0
        self._decoding = 0
        self._slot_seconds = self._tokens = 0.0
        self._prefill = _Line(1 - 1 / _MEMORY_PREFILLS)

    def first_token(self, now: float, num_prompt_tokens: int, seconds: float) -> None:
        """A run has its first token, so many seconds after it got its slot."""
        self._pass(now)
        self._decoding += 1
        self._prefill.add(num_prompt_tokens, seconds)

    def tokens(self, now: float, count: int) -> None:
        """More tokens of a run that decodes."""
        if now - self._at > _MIN_INTERVAL_SECONDS:
            self._pass(now)
        self._tokens += count

    def end(self, now: float) -> None:
        """A run that decoded has ended."""
        self._pass(now)
        self._decoding -= 1

    @property
    def is_known(self) -> bool:
        """Whether there was anything to learn from."""
        return self._prefill.is_known

    def prefill_seconds(self, num_prompt_tokens: int) -> float:
        """From slot to first token."""
        return self._prefill.at(num_prompt_tokens)

    def token_seconds(self) -> float:
        """From token to token; 0 while no answer had a second one."""
        return self._slot_seconds / self._tokens if self._tokens > 0 else 0.0

    def _pass(self, now: float) -> None:
        """Time goes by: each run that decodes used so much of its slot."""
        seconds = now - self._at
        if self._decoding and seconds > 0:
            keep = math.exp(-seconds / _MEMORY_SECONDS)
            self._slot_seconds = self._slot_seconds * keep + self._decoding * seconds
            self._tokens *= keep
        self._at = now


class _Line:
    """A straight line through points that fade; never falling, never below 0."""

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    @property
    def is_known(self) -> bool:
        return self._n > 0

    def add(self, x: float, y: float) -> None:
        keep = self._keep
        self._n = self._n * keep + 1
        self._x, self._y = self._x * keep + x, self._y * keep + y
        self._xx, self._xy = self._xx * keep + x * x, self._xy * keep + x * y

    def at(self, x: float) -> float:
        if not self._n:
            return 0.0
        mean_x, mean_y = self._x / self._n, self._y / self._n
        spread = self._xx / self._n - mean_x * mean_x
        slope = (self._xy / self._n - mean_x * mean_y) / spread if spread > 1e-9 else 0.0
        # Prompts much longer than any that was seen: at least in proportion, or a long one would look as cheap as a short one.
        slope = min(max(0.0, slope), mean_y / mean_x if mean_x > 0 else 0.0)
        return max(0.0, mean_y + slope * (x - mean_x))
