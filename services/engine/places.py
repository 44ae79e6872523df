"""A place is a name that shall have a living pod: it starts one, hears it, buries it, and knows when the next may start."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from msgspec import Struct

from services.engine import children
from services.engine.children import Adopted, Child
from services.pods_file import CrashLoop, PodEntry
from services.settings.declared import MAX_PODS
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from services.engine.children import How
    from services.settings import RunnerSettings

log = get_logger()

# A pod that lived for so long is started again at once; one that did not waits, twice as long each time.
_STABLE_SECONDS = 60.0
_FIRST_PAUSE_SECONDS = 1.0
_MAX_PAUSE_SECONDS = 30.0
# After its own limit a pod is cut by the runner, so that a stop always ends.
STOP_MARGIN_SECONDS = 5.0


class PlaceRecord(Struct, frozen=True, kw_only=True):
    """What a runner that replaces its own program hands on of a place."""

    number: int
    child: Adopted | None
    restarts: int
    last_exit: str
    was_ready: bool
    is_retiring: bool


class Place:
    """One pod's place. It is `over` when its pod was retired and is gone."""

    def __init__(self, settings: RunnerSettings, number: int, how: How, *, is_successor: bool = False) -> None:
        """`number` counts from 1 and makes name (unless the only pod has POD_NAME) and, with POD_PORT, the port.

        `is_successor`: the number's old pod is still there, and has that port.
        """
        self.number = number
        self.name = name_of(settings, number)
        self.settings = settings
        self.child: Child | None = None
        self.is_over = False
        self.load_failure = ""
        self.was_ready = False
        self.restarts = 0
        self.last_exit = ""
        self.is_retiring = False
        self._how = how
        first = settings.pod_port + number - 1 if settings.pod_port else 0
        self._ports = range(first, settings.pod_port + 2 * MAX_PODS) if first and is_successor else range(first, first + 1)
        self._start_at = 0.0
        self._pause_seconds = 0.0
        self._is_loop = False
        self._kill_at = 0.0

    @classmethod
    def adopt(cls, settings: RunnerSettings, how: How, record: PlaceRecord) -> Place:
        """A place with its pod as an earlier program of this runner knew it."""
        place = cls(settings, record.number, how, is_successor=True)
        place.child = Child.adopt(place.name, record.child) if record.child else None
        place.restarts, place.last_exit, place.was_ready = record.restarts, record.last_exit, record.was_ready
        if record.is_retiring:
            place.retire()
        return place

    def hand_over(self) -> PlaceRecord:
        """What `adopt` needs."""
        return PlaceRecord(
            number=self.number,
            child=self.child.hand_over() if self.child else None,
            restarts=self.restarts,
            last_exit=self.last_exit,
            was_ready=self.was_ready,
            is_retiring=self.is_retiring,
        )

    @property
    def is_ready(self) -> bool:
        """Whether its pod has said that it takes requests."""
        return self.child is not None and self.child.state == "ready"

    def entry(self) -> PodEntry | None:
        """Its line in the pods file, None while there is no pod."""
        child = self.child
        if child is None:
            return None
        return PodEntry(
            name=self.name,
            host=self.settings.pod_host,
            port=child.port,
            pid=child.pid,
            started_at=child.started_at,
            start_ticks=child.start_ticks,
            restarts=self.restarts,
            last_exit=self.last_exit,
            is_leaving=self.is_retiring,
        )

    def loop(self) -> CrashLoop | None:
        """What is to be said if its pods die again and again, until one is ready."""
        if not self._is_loop or self.is_retiring or self.is_ready:
            return None
        next_try_at = 0.0 if self.child else round(time.time() + max(0.0, self._start_at - time.monotonic()))
        return CrashLoop(name=self.name, restarts=self.restarts, last_exit=self.last_exit, next_try_at=next_try_at)

    def start_if_due(self) -> bool:
        """Starts a pod if there is none and the pause is over; whether it did."""
        if self.child is not None or self.is_retiring or time.monotonic() < self._start_at:
            return False
        try:
            self.child = children.start(self.settings, self.name, self._ports, self._how)
        except OSError as error:
            self.last_exit = self.load_failure = f"a pod could not be started: {error}"
            self._pause(lived=0.0)
            return False
        log.info("runner.pod_started", pod=self.name, pid=self.child.pid, port=self.child.port, restarts=self.restarts)
        return True

    def care(self) -> None:
        """Hears the pod, ends it if it hangs or does not end in time, buries it if it is dead."""
        child = self.child
        if child is None:
            return
        child.hear()
        self.was_ready |= self.is_ready
        code = child.poll()
        if code is not None:
            child.hear()  # its last words may have come between the two
            self._bury(child, code)
            return
        limit = self.settings.hang_timeout_seconds
        # Before its first word a pod imports, which may take longer than any request.
        if child.state and not child.killed_for and time.monotonic() - child.heard_at > limit:
            self._kill(child, f"killed: silent for HANG_TIMEOUT_SECONDS={limit:g}")
        elif self.is_retiring and not child.killed_for and time.monotonic() > self._kill_at:
            self._kill(child, f"killed: did not end within DRAIN_TIMEOUT_SECONDS={self.settings.drain_timeout_seconds:g}")

    def retire(self) -> None:
        """Takes the place out of service: its pod drains, and no other follows."""
        if self.is_retiring:
            return
        self.is_retiring = True
        self.is_over = self.child is None
        self._kill_at = time.monotonic() + self.settings.drain_timeout_seconds + STOP_MARGIN_SECONDS
        self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        """Signals the pod, if there is one."""
        if self.child is not None:
            self.child.send(number)

    @staticmethod
    def _kill(child: Child, reason: str) -> None:
        child.killed_for = reason
        child.send(signal.SIGKILL)

    def _bury(self, child: Child, code: int) -> None:
        child.close()
        self.child, self.last_exit, self.load_failure = None, self._last_words(child, code), child.failure
        if self.is_retiring:
            self.is_over = True
            log.info("runner.pod_retired", pod=self.name, pid=child.pid, exit=self.last_exit)
            return
        self._pause(lived=time.monotonic() - child.begun_at)

    def _pause(self, lived: float) -> None:
        """Before the next start, after a death or a start that could not be."""
        # The first death is no loop yet: the next pod starts at once.
        self._is_loop = self.restarts > 0 and lived < _STABLE_SECONDS
        self._pause_seconds = min(_MAX_PAUSE_SECONDS, max(_FIRST_PAUSE_SECONDS, self._pause_seconds * 2)) if self._is_loop else 0.0
        self.restarts += 1
        self._start_at = time.monotonic() + self._pause_seconds
        log.warning(
            "runner.pod_died", pod=self.name, reason=self.last_exit, lived_seconds=round(lived, 1), pause_seconds=self._pause_seconds
        )

    def _last_words(self, child: Child, code: int) -> str:
        words, line = child.last_words(code), ""
        if words.startswith("exit code") and code:
            line = children.last_line(self.settings, self.name)
        return f"{words}: {line}" if line else words


def name_of(settings: RunnerSettings, number: int) -> str:
    """The name of the pod of that number."""
    return settings.pod_name if settings.pod_name and number == 1 else f"engine-{number}"
