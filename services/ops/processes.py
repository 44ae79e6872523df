"""The processes of one stack, recognised by a mark in their environment, and how they are ended.

A process id alone proves nothing: it may have been given to somebody else since. Every process that `convoy up` starts, and every child of
one, inherits `MARKER` with the state folder as its value, and psutil never signals an id that has changed hands.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MARKER = "CONVOY_SUPERVISED"

_SUPERVISOR = "services.ops.supervise"
_RUNNER = "services.engine"


def find(state_dir: Path) -> list[psutil.Process]:
    """The living processes of the stack in `state_dir`, of any user whose processes can be read."""
    return [process for process in psutil.process_iter() if _belongs(process, str(state_dir))]


def supervisor(processes: Sequence[psutil.Process]) -> psutil.Process | None:
    """The supervisor among `processes`: while it lives, the stack runs."""
    return next((process for process in processes if _SUPERVISOR in _words(process)), None)


def describe(process: psutil.Process) -> str:
    """`edge (pid 12)` for a message."""
    words = _words(process)
    role = next((word.removeprefix("services.") for word in words if word.startswith("services.")), "")
    return f"{role or (words[0].rsplit('/', 1)[-1] if words else 'process')} (pid {process.pid})"


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_gone(processes: Sequence[psutil.Process], timeout_seconds: float) -> list[psutil.Process]:
    """Waits until all have ended; gives back those that have not."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        left = [process for process in processes if is_alive(process)]
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(0.02)


def end_leftovers(state_dir: Path, grace_seconds: float) -> list[str]:
    """Ends what still belongs to a stack whose supervisor is gone, asking first; returns what it ended, in words.

    Runners go first: one that lived on would start its pods again.
    """
    left = find(state_dir)
    names = [describe(process) for process in left]
    for group in (_runners(left), left):
        send(group, "terminate")
        send(wait_gone(group, grace_seconds), "kill")
    kill_all(state_dir)
    return names


def _runners(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    # A forked pod has its runner's command line, so the one without a parent of that kind is the runner (or an orphaned pod).
    engines = {process.pid: process for process in processes if _RUNNER in _words(process)}
    return [process for process in engines.values() if _parent_id(process) not in engines]


def kill_all(state_dir: Path) -> None:
    """SIGKILL to everything of the stack, again until nothing is left: a process may have been forking."""
    for _ in range(10):
        left = find(state_dir)
        if not left:
            return
        send(left, "kill")
        wait_gone(left, 2)


def send(processes: Sequence[psutil.Process], method: str) -> None:
    """Calls `terminate` or `kill` on each that still lives."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            getattr(process, method)()


def _belongs(process: psutil.Process, state_dir: str) -> bool:
    try:
        return process.environ().get(MARKER) == state_dir and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _parent_id(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.Error:
        return 0


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
