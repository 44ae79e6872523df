"""What a drill is: a fault, what to wait for, how it is healed, and how the three are carried out on one pod of a running stack.

A drill does not judge what clients see: whoever carries it out has the load, and counts.
"""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

import psutil

from services import pods_file
from services.ops import probe
from services.ops.state import OpsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from services.pods_file import PodEntry

_LOOK_EVERY_SECONDS = 0.1


class Drill(ABC):
    """One fault of one pod; an object is good for one time. The docstring of a drill's module is its hypothesis."""

    name: ClassVar[str]

    def __init__(self, state_dir: Path, pod: str) -> None:
        """Notes the pod's process as it is before the fault. Raises `OpsError` if there is no such pod."""
        self.state_dir = state_dir
        self.pod = pod
        found = [entry for entry in self.staying() if entry.name == pod]
        if not found:
            raise OpsError(f"pod must be one of {', '.join(sorted({entry.name for entry in self.known().pods})) or 'none'}, got {pod}")
        self.before = found[0]
        self._process = self._find_process()
        self.injected_at = 0.0

    @abstractmethod
    def inject(self) -> None:
        """Does the fault."""

    @abstractmethod
    def has_struck(self) -> bool:
        """Whether the fault has lasted, or done, what it was to."""

    def heal(self) -> None:  # noqa: B027 - most faults end by themselves
        """Takes the fault away, if it does not end by itself."""

    @property
    def is_dead(self) -> bool:
        """Whether the process that the pod had has ended."""
        return not self._process.is_running() or self._process.status() == psutil.STATUS_ZOMBIE

    @property
    def lasted(self) -> float:
        """Seconds since the fault began."""
        return time.monotonic() - self.injected_at

    def is_steady(self) -> bool:
        """Whether the pod is ready again, in the old process or, if that died, in a new one."""
        entries = [entry for entry in self.known().pods if entry.name == self.pod]
        if len(entries) != 1 or (self.is_dead and entries[0].pid == self.before.pid):
            return False
        return probe.readiness(entries)[0].state == "ready"

    def staying(self) -> list[PodEntry]:
        """The pods but those that drain to end."""
        return [entry for entry in self.known().pods if not entry.is_leaving]

    def known(self) -> pods_file.PodsFile:
        """What the runner tells of its pods. Raises `OpsError` if there is none."""
        path = self.state_dir / pods_file.NAME
        try:
            return pods_file.read(path)
        except FileNotFoundError:
            raise OpsError(f"nothing runs: there is no {path}") from None

    def tell_runner(self) -> None:
        """Has the runner, of whom pods are children, read what is asked of it. Raises `OpsError` if it is gone."""
        for entry in self.staying():
            with suppress(psutil.NoSuchProcess):
                runner = psutil.Process(entry.pid).parent()
                if runner is not None and runner.pid > 1:
                    runner.send_signal(signal.SIGUSR1)
                    return
        raise OpsError("no pod's runner is there; see `convoy status`")

    def _find_process(self) -> psutil.Process:
        try:
            return psutil.Process(self.before.pid)
        except psutil.NoSuchProcess:
            raise OpsError(f"{self.pod} is not well: its process {self.before.pid} is gone; see `convoy status`") from None


def carry_out(drill: Drill, limit_seconds: float) -> float:
    """Injects, waits, heals, and waits until the pod serves; how long all of it took.

    Each wait has `limit_seconds`; raises `OpsError` when it is over. What was injected is healed whatever happens.
    """
    began = drill.injected_at = time.monotonic()
    try:
        drill.inject()
        _until(drill.has_struck, f"{drill.name}: the fault has not done its work on {drill.pod}", limit_seconds)
    finally:
        drill.heal()
    _until(drill.is_steady, f"{drill.name}: {drill.pod} does not serve again", limit_seconds)
    return time.monotonic() - began


def _until(condition: Callable[[], bool], otherwise: str, limit_seconds: float) -> None:
    deadline = time.monotonic() + limit_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise OpsError(f"{otherwise} after {limit_seconds:g} s")
        time.sleep(_LOOK_EVERY_SECONDS)
