"""The Convoy that is examined: where it answers, what it was started with, what its edge says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.clients import guests

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.settings import EdgeSettings


@dataclass(frozen=True)
class Target:
    """`settings` are those in force now; `env` is what its processes were started with. `envoy_pid` 0: not known."""

    url: str
    settings: EdgeSettings
    env: Mapping[str, str]
    envoy_pid: int = 0
    parts: Mapping[str, str] = field(default_factory=dict)
    """What watches it: address by name."""

    @property
    def state_dir(self) -> Path:
        """Its state folder, absolute."""
        return Path(self.settings.state_dir).absolute()

    @property
    def guests_file(self) -> Path:
        """Where the edge looks for the doctor's guests."""
        return self.state_dir / guests.NAME

    def told(self) -> dict[str, Any]:
        """What the edge said last, in edge.json; empty if it never did."""
        return self.read("edge.json")

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the state folder; empty if there is none."""
        try:
            found: dict[str, Any] = json.loads((self.state_dir / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    @property
    def asks_for_keys(self) -> bool:
        """Whether there is a clients file, in the edge's word."""
        return self.told().get("num_clients") is not None
