"""Whether a file that was changed is what the running edge and Envoy go by."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from services.ops import start

if TYPE_CHECKING:
    from pathlib import Path

    from services.ops.state import StateDir

_POLL_SECONDS = 0.02


class _Input(Struct):
    sha256: str = ""
    error: str = ""


class _Envoy(Struct):
    runs: dict[str, str] = {}


class _Told(Struct):
    """What of `edge.json` says it."""

    inputs: dict[str, _Input] = {}
    envoy: _Envoy | None = None
    written: dict[str, str] = {}


class Watch:
    """Begins before a file is changed, so that a mistake of before is told from one of now."""

    def __init__(self, state: StateDir, path: Path) -> None:
        """Looks at what the edge says of `path` now."""
        self._path = state.path / "edge.json"
        self._names = {str(path), str(path.resolve())}
        self.is_running = start.running(state) is not None
        self._error_before = self._input(self._told()).error

    def wait(self, content: bytes, timeout_seconds: float) -> str:
        """Waits until `content` is in force; what is wrong if it is not, empty if it is."""
        digest = hashlib.sha256(content).hexdigest()
        deadline = time.monotonic() + timeout_seconds
        while True:
            told = self._told()
            found = self._input(told)
            if found.sha256 == digest and not found.error and told.envoy and told.envoy.runs == told.written:
                return ""
            is_over = time.monotonic() > deadline
            if found.error and (is_over or found.error != self._error_before):
                return found.error
            if is_over:
                return f"the edge did not put it in force within {timeout_seconds:g} s; see `convoy status` and `convoy logs edge`"
            time.sleep(_POLL_SECONDS)

    def _told(self) -> _Told:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Told)
        except (OSError, msgspec.DecodeError):
            return _Told()

    def _input(self, told: _Told) -> _Input:
        return next((found for name, found in told.inputs.items() if name in self._names), _Input())
