"""The pods file: which pods there are and where, for the edge and for people. Written by rename, so that a reader never sees half of it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import msgspec
import psutil

if TYPE_CHECKING:
    import signal
    from pathlib import Path

# Between the pod's clock at its start and the kernel's record of it.
_CLOCK_SLACK_SECONDS = 5.0


@dataclass(slots=True)
class Entry:
    """One pod. `started_at` in Unix seconds; `restarts` counts the pods of this name that died before it, `last_exit` says how."""

    name: str
    host: str
    port: int
    pid: int
    started_at: float
    restarts: int
    last_exit: str

    def is_alive(self) -> bool:
        """Whether the process is still this pod, and not another one with its number."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_at) < _CLOCK_SLACK_SECONDS
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def send(self, number: signal.Signals) -> None:
        """Signals the process, if it is still this pod."""
        if self.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


class PodsFile:
    """STATE_DIR/pods.json."""

    def __init__(self, path: Path) -> None:
        """Makes the folder."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> list[Entry]:
        """The entries of the last write, none if there was none."""
        if not self._path.exists():
            return []
        return msgspec.convert(msgspec.json.decode(self._path.read_bytes())["pods"], list[Entry])

    def write(self, entries: list[Entry], error: str = "") -> None:
        """Replaces the file. `error`: why the runner gave up, in one line."""
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode({"pods": [asdict(entry) for entry in entries], "error": error})))
        temporary.replace(self._path)
