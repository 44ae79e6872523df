"""BATCHING: when a waiting request joins the batch. Three strategies behind one question; the batch itself is the same for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from services.settings import EngineSettings


class Scheduler(Protocol):
    """Asked between two steps, and when something comes while nothing runs."""

    def num_joining(self, num_waiting: int, num_running: int, waited_seconds: float) -> int:
        """How many of the waiting join now, the first of which has waited so long; more than there is room for is fine."""

    def seconds_to_wait(self, num_waiting: int, waited_seconds: float) -> float | None:
        """How long to wait for more while nothing runs; None waits until something comes."""


class OneByOne:
    """`none`: the next request begins when the one before has ended, as if each were alone."""

    def num_joining(self, num_waiting: int, num_running: int, waited_seconds: float) -> int:  # noqa: ARG002 - the interface's
        """One, when nothing runs."""
        return min(num_waiting, 1) if not num_running else 0

    def seconds_to_wait(self, num_waiting: int, waited_seconds: float) -> float | None:  # noqa: ARG002 - the interface's
        """Not at all, if one waits."""
        return 0.0 if num_waiting else None


class Window:
    """`window`: what comes within a time, or fills the rows before it is over, runs together until the last of it has ended."""

    def __init__(self, seconds: float, max_rows: int) -> None:
        """`seconds` count from the first that waits."""
        self._seconds = seconds
        self._max_rows = max_rows

    def num_joining(self, num_waiting: int, num_running: int, waited_seconds: float) -> int:
        """All, when nothing runs and the time is over or the rows are full."""
        is_due = waited_seconds >= self._seconds or num_waiting >= self._max_rows
        return num_waiting if not num_running and is_due else 0

    def seconds_to_wait(self, num_waiting: int, waited_seconds: float) -> float | None:
        """What is left of the time."""
        return max(0.0, self._seconds - waited_seconds) if num_waiting else None


class Continuous:
    """`continuous`: a request joins at the next step, wherever a row is free."""

    def num_joining(self, num_waiting: int, num_running: int, waited_seconds: float) -> int:  # noqa: ARG002 - the interface's
        """All."""
        return num_waiting

    def seconds_to_wait(self, num_waiting: int, waited_seconds: float) -> float | None:  # noqa: ARG002 - the interface's
        """It never has somebody waiting while nothing runs."""
        return None


def create(settings: EngineSettings) -> Scheduler:
    """The one that BATCHING names."""
    if settings.batching == "none":
        return OneByOne()
    if settings.batching == "window":
        return Window(settings.batch_window_ms / 1000, settings.max_concurrent_requests)
    return Continuous()
