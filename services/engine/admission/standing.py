"""How long anybody may wait: as long as they like in a burst, about as long as one answer takes while the load stays too high.

A queue takes up what comes at once and would be served soon. One that stays long serves nobody: as many are answered as with a short one,
each of them later. So it is kept short from when it has stood for a while until it has been gone for as long (as CoDel does: Nichols and
Jacobson, 2012); who comes meanwhile is told to return.
"""

from __future__ import annotations

_MIN_TARGET_SECONDS = 0.1
# Of what one answer takes. Longer waits serve nobody; shorter ones would refuse many where chance alone makes such queues.
_TARGET_SHARE = 0.8
# A queue that has been too long for as long as is aimed at, or at least so long, is no burst.
_MIN_BURST_SECONDS = 2.0
# Only a queue that stays below this share of the aim shows that the load is over: at the aim itself admission keeps it.
_GONE_SHARE = 0.5
_LEARNING = 0.1


class StandingQueue:
    """Watches the wait that each newcomer would have. Times are on the clock of `time.monotonic()`."""

    def __init__(self, timeout_seconds: float) -> None:
        """`timeout_seconds` is the longest wait at any time."""
        self._timeout = timeout_seconds
        self._mean_hold = 0.0
        self._contrary_at: float | None = None
        """Since when it looks as if it were no longer what it is taken for."""
        self._stands = False

    def held(self, seconds: float) -> None:
        """A slot was held for so long."""
        self._mean_hold += (seconds - self._mean_hold) * (_LEARNING if self._mean_hold else 1.0)

    def max_wait(self, wait: float, now: float) -> float:
        """The longest wait that is allowed at this moment, in which a newcomer would have `wait`."""
        target = min(self._timeout, max(_MIN_TARGET_SECONDS, self._mean_hold * _TARGET_SHARE))
        if (wait <= target * _GONE_SHARE) if self._stands else (wait > target):
            if self._contrary_at is None:
                self._contrary_at = now
            elif now - self._contrary_at > max(target, _MIN_BURST_SECONDS):
                self._stands, self._contrary_at = not self._stands, None
        else:
            self._contrary_at = None
        return target if self._stands else self._timeout
