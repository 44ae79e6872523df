"""How long answers get, from those that were given: what a request's `max_tokens` allows is seldom what it takes."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import OrderedDict, deque
from itertools import accumulate

_KEPT = 256
_MIN_OF_CLIENT = 8
_MAX_CLIENTS = 1024


class _History:
    """The last answers' lengths, sorted. One that was cut is known to be longer than what came of it, so it counts as without end."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._sums: list[float] = []

    def __len__(self) -> int:
        return len(self._recent)

    def add(self, length: float) -> None:
        if len(self._recent) == _KEPT:
            oldest = self._recent.popleft()
            del self._sorted[bisect_right(self._sorted, oldest) - 1]
        self._recent.append(length)
        insort(self._sorted, length)
        self._sums = []

    def expected(self, max_tokens: int, so_far: int) -> float:
        """The mean of those that got longer than `so_far`, none taken as longer than `max_tokens`; without any, `max_tokens`."""
        if not self._sums:
            finite = (length if length < math.inf else 0.0 for length in self._sorted)
            self._sums = [0.0, *accumulate(finite)]
        first, end = bisect_right(self._sorted, so_far), bisect_right(self._sorted, max_tokens)
        num_longer = len(self._sorted) - first
        if not num_longer or end < first:
            return max_tokens
        return (self._sums[end] - self._sums[first] + (len(self._sorted) - end) * max_tokens) / num_longer


class Lengths:
    """Answers of all clients, and of each one that has had enough of them."""

    def __init__(self) -> None:
        """No answer was given yet."""
        self._all = _History()
        self._of: OrderedDict[str, _History] = OrderedDict()

    def add(self, client: str, num_tokens: int, *, is_whole: bool) -> None:
        """An answer that ended by itself, or (`is_whole` false) was cut off at its `max_tokens`."""
        length = num_tokens if is_whole else math.inf
        self._all.add(length)
        if client not in self._of and len(self._of) >= _MAX_CLIENTS:
            self._of.popitem(last=False)
        history = self._of.setdefault(client, _History())
        self._of.move_to_end(client)
        history.add(length)

    def expected(self, client: str, max_tokens: int, so_far: int = 0) -> float | None:
        """Tokens that an answer will have in all, given that `so_far` came; None while nobody can know."""
        history = self._of.get(client)
        if history is None or len(history) < _MIN_OF_CLIENT:
            history = self._all
        return history.expected(max_tokens, so_far) if len(history) else None
