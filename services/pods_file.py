"""The pods file, STATE_DIR/pods.json: which pods there are and where. The runner writes it; the edge and `convoy` read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from services.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

NAME = "pods.json"


class PodEntry(Struct, frozen=True, kw_only=True):
    """One pod. `started_at` in Unix seconds; `restarts` counts the pods of this name that died before it, `last_exit` says how.

    A new process of a pod is a new entry, which may stand beside the draining old one for a while.
    """

    name: str
    host: str
    port: int
    pid: int = 0
    started_at: float = 0.0
    restarts: int = 0
    last_exit: str = ""


class PodsFile(Struct, frozen=True):
    """All pods; `error` is the one line why the runner gave up, empty while it did not."""

    pods: tuple[PodEntry, ...]
    error: str = ""


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
