"""A place is a name that shall have a living pod: it starts one, hears it, buries it, and knows when the next may start."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from services.engine import children
from services.pods_file import PodEntry
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from services.engine.children import Child, How
    from services.settings import RunnerSettings

log = get_logger()

# A pod that lived for so long is started again at once; one that did not waits, twice as long each time.
_STABLE_SECONDS = 60.0
_FIRST_PAUSE_SECONDS = 1.0
_MAX_PAUSE_SECONDS = 30.0


class Place:
    """One pod's place. It is `over` when its pod was retired and is gone."""

    def __init__(self, settings: RunnerSettings, number: int, how: How) -> None:
        """`number` counts from 1 and makes name (unless the only pod has POD_NAME) and, with POD_PORT, the port."""
        self.number = number
        self.name = settings.pod_name if settings.pod_name and number == 1 else f"engine-{number}"
        self.child: Child | None = None
        self.is_over = False
        self.load_failure = ""
        self.was_ready = False
        self._settings = settings
        self._how = how
        self._port = settings.pod_port + number - 1 if settings.pod_port else 0
        self._restarts = 0
        self._last_exit = ""
        self._start_at = 0.0
        self._pause_seconds = 0.0
        self.is_retiring = False

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
            host=self._settings.pod_host,
            port=child.port,
            pid=child.pid,
            started_at=child.started_at,
            restarts=self._restarts,
            last_exit=self._last_exit,
        )

    def start_if_due(self) -> bool:
        """Starts a pod if there is none and the pause is over; whether it did. Raises `OSError`."""
        if self.child is not None or self.is_retiring or time.monotonic() < self._start_at:
            return False
        self.child = children.start(self._settings, self.name, self._port, self._how)
        log.info("runner.pod_started", pod=self.name, pid=self.child.pid, port=self.child.port, restarts=self._restarts)
        return True

    def care(self) -> bool:
        """Hears the pod, ends it if it hangs, buries it if it is dead; whether the pods file changes by that."""
        child = self.child
        if child is None:
            return False
        child.hear()
        self.was_ready |= self.is_ready
        code = child.poll()
        if code is not None:
            child.hear()  # its last words may have come between the two
            self._bury(child, code)
            return True
        limit = self._settings.hang_timeout_seconds
        # Before its first word a pod imports, which may take longer than any request.
        if child.state and not child.killed_for and time.monotonic() - child.heard_at > limit:
            child.killed_for = f"killed: silent for HANG_TIMEOUT_SECONDS={limit:g}"
            child.send(signal.SIGKILL)
        return False

    def retire(self) -> None:
        """Takes the place out of service: its pod drains, and no other follows."""
        if self.is_retiring:
            return
        self.is_retiring = True
        self.is_over = self.child is None
        self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        """Signals the pod, if there is one."""
        if self.child is not None:
            self.child.send(number)

    def _bury(self, child: Child, code: int) -> None:
        child.close()
        self.child, self._last_exit, self.load_failure = None, child.last_words(code), child.failure
        if self.is_retiring:
            self.is_over = True
            log.info("runner.pod_retired", pod=self.name, exit=self._last_exit)
            return
        lived = time.time() - child.started_at
        # The first death is no loop yet: the next pod starts at once.
        is_loop = self._restarts > 0 and lived < _STABLE_SECONDS
        self._pause_seconds = min(_MAX_PAUSE_SECONDS, max(_FIRST_PAUSE_SECONDS, self._pause_seconds * 2)) if is_loop else 0.0
        self._restarts += 1
        self._start_at = time.monotonic() + self._pause_seconds
        log.warning(
            "runner.pod_died", pod=self.name, reason=self._last_exit, lived_seconds=round(lived, 1), pause_seconds=self._pause_seconds
        )
