"""The pod's state, one small machine: what follows what, and what each state means for readiness. A full queue is never unhealthy."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from services.openai.errors import Draining, NotReady
from services.telemetry.logging import get_logger

log = get_logger()

State = Literal["loading", "warming", "ready", "stalled", "draining", "stopped"]

FOLLOWS: dict[State, frozenset[State]] = {
    "loading": frozenset({"warming", "draining", "stopped"}),
    "warming": frozenset({"ready", "draining", "stopped"}),
    "ready": frozenset({"stalled", "draining", "stopped"}),
    "stalled": frozenset({"ready", "draining", "stopped"}),
    "draining": frozenset({"stopped"}),
    "stopped": frozenset(),
}
"""The states that may follow each. Only a stall has a way back."""

_PROGRESS: dict[State, str] = {
    "loading": "starting",
    "warming": "the first generation",
    "ready": "ready",
    "stalled": "the engine brings no token",
    "draining": "finishing what runs",
    "stopped": "stopped",
}


class Health:
    """The state as it is now; others ask and move it, nobody sets it."""

    def __init__(self) -> None:
        """Loading."""
        self.state: State = "loading"
        self.progress = _PROGRESS["loading"]
        self.started_at = time.monotonic()
        self._since = self.started_at
        self._was_ready = False
        self.refuses = False
        """Whether new requests are turned away though it is neither loading nor stalled."""
        self.told_draining = asyncio.Event()
        """Somebody has asked `/readyz` and learnt that the pod is draining."""

    def report(self, progress: str) -> None:
        """What loading is at, for people."""
        self.progress = progress

    def become(self, state: State, progress: str = "") -> bool:
        """Moves on to `state`, if that may follow now; whether it did. `progress` says more, for people."""
        before = self.state
        if state not in FOLLOWS[before]:
            return False
        now = time.monotonic()
        log.info("pod.state", state=state, was=before, seconds=round(now - self._since, 3), **({"reason": progress} if progress else {}))
        self.state, self.progress, self._since = state, progress or _PROGRESS[state], now
        self._was_ready |= state == "ready"
        # What has never been ready has nothing to serve with until the edge knows.
        self.refuses |= state == "stopped" or (state == "draining" and not self._was_ready)
        return True

    def refuse(self) -> None:
        """New requests are refused from now on, to be tried on another pod."""
        self.refuses = True

    def check_ready(self) -> None:
        """Raises `NotReady` or `Draining` if no request is taken now; a pod that drains takes some until `refuse`."""
        if self.state in {"loading", "warming", "stalled"}:
            raise NotReady(f"This pod is not ready: {self.progress}", retry_after_seconds=1)
        if self.refuses:
            raise Draining("This pod is stopping and takes no new request", retry_after_seconds=1)

    def readiness(self, pod: str) -> tuple[int, dict[str, object]]:
        """Status and body of `/readyz`."""
        if self.state == "draining":
            self.told_draining.set()
        seconds = round(time.monotonic() - self.started_at, 1)
        status = 200 if self.state == "ready" else 503
        return status, {"pod": pod, "state": self.state, "progress": self.progress, "seconds": seconds}
