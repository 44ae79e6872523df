"""Alive, ready and draining: three questions, answered from the one state of the pod. A full queue is never unhealthy."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from services.openai.errors import Draining, NotReady

State = Literal["loading", "ready", "draining"]


class Health:
    """The pod's state: loading, then ready, then draining; there is no way back."""

    def __init__(self) -> None:
        """Loading."""
        self.state: State = "loading"
        self.progress = "starting"
        self.started_at = time.monotonic()
        self._refuses = False
        self.told_draining = asyncio.Event()
        """Somebody has asked `/readyz` and learnt that the pod is draining."""

    def report(self, progress: str) -> None:
        """What loading is at, for people."""
        self.progress = progress

    def become_ready(self) -> None:
        """The model is loaded; requests are taken."""
        if self.state == "loading":
            self.state, self.progress = "ready", "ready"

    def become_draining(self) -> None:
        """No longer ready; what still comes is served until `refuse`, so that nobody is turned away before Envoy knows."""
        self.state, self.progress = "draining", "finishing what runs"

    def refuse(self) -> None:
        """New requests are refused from now on, to be tried on another pod."""
        self._refuses = True

    def check_ready(self) -> None:
        """Raises `NotReady` or `Draining` if no request is taken now; a pod that drains takes some until `refuse`."""
        if self.state == "loading":
            raise NotReady(f"This pod is not ready: {self.progress}", retry_after_seconds=1)
        if self._refuses:
            raise Draining("This pod is stopping and takes no new request", retry_after_seconds=1)

    def readiness(self, pod: str) -> tuple[int, dict[str, object]]:
        """Status and body of `/readyz`."""
        if self.state == "draining":
            self.told_draining.set()
        seconds = round(time.monotonic() - self.started_at, 1)
        status = 200 if self.state == "ready" else 503
        return status, {"pod": pod, "state": self.state, "progress": self.progress, "seconds": seconds}
