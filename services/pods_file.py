"""The pods file, STATE_DIR/pods.json: which pods there are and where. The runner writes it; the edge and `convoy` read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct

from services.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

NAME = "pods.json"


class PodEntry(Struct, frozen=True, kw_only=True):
    """One pod. `started_at` in Unix seconds, to be shown; `start_ticks` tells its process from a later one with the same number.

    `restarts` counts the pods of this name that died before it, `last_exit` says how.
    A new process of a pod is a new entry, which may stand beside the old one for a while. `is_leaving`: it was told to end, drains, and
    does not count as one of the pods that there shall be.
    """

    name: str
    host: str
    port: int
    pid: int = 0
    started_at: float = 0.0
    start_ticks: int = 0
    restarts: int = 0
    last_exit: str = ""
    is_leaving: bool = False


class CrashLoop(Struct, frozen=True, kw_only=True):
    """A pod that dies again and again, while it is not ready. `next_try_at`: Unix seconds; 0 while a process of it is coming up."""

    name: str
    restarts: int
    last_exit: str
    next_try_at: float = 0.0


class Roll(Struct, frozen=True, kw_only=True):
    """A restart of all pods, one after the other: the one under way, or the last one.

    `checking`: would a pod start at all; `taking back`: something failed, and pods that are new already are replaced once more. `failed`
    has a `reason`, and `is_mixed` if not all pods run what they ran before.
    """

    id: str
    state: Literal["checking", "rolling", "taking back", "done", "failed"]
    total: int = 0
    replaced: int = 0
    progress: str = ""
    reason: str = ""
    is_mixed: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in {"done", "failed"}


class PodsFile(Struct, frozen=True):
    """All pods; `error` is the one line why the runner gave up, empty while it did not."""

    pods: tuple[PodEntry, ...]
    error: str = ""
    loops: tuple[CrashLoop, ...] = ()
    roll: Roll | None = None


def read(path: Path) -> PodsFile:
    """What was written last; raises `FileNotFoundError`, or `ValueError` that names what is wrong with the file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=PodsFile)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: {error}") from error


def write(path: Path, content: PodsFile) -> None:
    """Replaces the file; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(content)))
