"""Whether Envoy sends requests to a pod, in the edge's word: STATE_DIR/edge.json. Before that its predecessor may not go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from pathlib import Path

    from services.pods_file import PodEntry


class _Pod(Struct, frozen=True):
    host: str
    port: int
    pid: int = 0
    state: str = ""


class _Envoy(Struct, frozen=True):
    runs: dict[str, str] = {}


class _Told(Struct, frozen=True):
    """What of `edge.json` says it."""

    pods: list[_Pod] = []
    written: dict[str, str] = {}
    envoy: _Envoy | None = None


def is_in_service(state_dir: Path, entry: PodEntry) -> bool:
    """Whether the edge knows that the pod is ready, and Envoy runs what follows from it. Where there is no edge, nobody waits for one."""
    try:
        told = msgspec.json.decode((state_dir / "edge.json").read_bytes(), type=_Told)
    except FileNotFoundError:
        return True
    except msgspec.DecodeError:
        return False
    is_known = any((pod.host, pod.port, pod.pid, pod.state) == (entry.host, entry.port, entry.pid, "ready") for pod in told.pods)
    return is_known and told.envoy is not None and told.envoy.runs == told.written
