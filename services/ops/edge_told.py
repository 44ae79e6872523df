"""What the edge says of itself in `STATE_DIR/edge.json`, and what in it is not as it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from services.ops.state import StateDir

_GRACE_SECONDS = 5.0
"""How long Envoy may take to run what was written; it takes milliseconds, on a busy machine a second."""


class Input(Struct, frozen=True):
    """A file that people change. `sha256`: of the bytes in force; `judged`: of those that `error` is about."""

    sha256: str = ""
    judged: str = ""
    error: str = ""


class EnvoySaid(Struct, frozen=True):
    """What Envoy runs, by resource."""

    runs: dict[str, str] = {}
    refused: dict[str, int] = {}


class PodSaid(Struct, frozen=True):
    """A pod, and what it last said to the edge."""

    name: str
    host: str
    port: int
    state: str


class EdgeTold(Struct, frozen=True):
    """The whole file. `settings`: the values in force of those that change while it runs."""

    updated_at: float = 0
    pods: list[PodSaid] = []
    num_retries: int = 0
    num_clients: int | None = None
    written: dict[str, str] = {}
    envoy: EnvoySaid | None = None
    inputs: dict[str, Input] = {}
    settings: dict[str, str | int | float | bool] = {}
    errors: list[str] = []

    @property
    def is_agreed(self) -> bool:
        """Whether Envoy runs all that was written."""
        return self.envoy is not None and self.envoy.runs == self.written


def read(state: StateDir) -> EdgeTold:
    """Empty before the edge said anything."""
    try:
        return msgspec.json.decode((state.path / "edge.json").read_bytes(), type=EdgeTold)
    except (FileNotFoundError, msgspec.DecodeError):
        return EdgeTold()


def problems(state: StateDir, now: float) -> list[str]:
    """What the edge cannot put in force, and what Envoy has not taken over for a while; one line each."""
    told = read(state)
    found = list(told.errors)
    if told.envoy is None or now - state.envoy().started_at < _GRACE_SECONDS:
        return found
    for name, version in told.written.items():
        runs = told.envoy.runs.get(name, "none")
        age = now - _written_at(state, name)
        if runs != version and age > _GRACE_SECONDS and not any(f"of {name};" in text for text in found):
            found.append(f"Envoy runs version {runs} of {name}; version {version} was written {age:.0f} s ago, see `convoy logs envoy`")
    return found


def _written_at(state: StateDir, name: str) -> float:
    try:
        return (state.path / "xds" / f"{name}.json").stat().st_mtime
    except FileNotFoundError:
        return 0
