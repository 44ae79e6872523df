"""What Envoy's parent writes down for `convoy status` and `convoy restart`.

It needs the standard library alone: the parent must start quickly.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from services.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

NAME = "envoy.json"


@dataclasses.dataclass(frozen=True)
class EnvoyRecord:
    """The Envoy that takes new connections, and its history within one run of the stack."""

    pid: int = 0
    """0: none runs, the parent has given up."""
    epoch: int = 0
    """How many hot restarts lie between it and an Envoy that began afresh."""
    started_at: float = 0
    restarts: int = 0
    """How often Envoy died and was started again by its parent. A hot restart is none."""
    last_exit: str = ""
    answered: int = 0
    """Hot restarts that were asked for and have come to an end, good or bad."""
    refusal: str = ""
    """Why the last of them failed; empty if it did not."""
    replaced: tuple[int, ...] = ()
    """Process ids of older Envoys that still finish their streams."""
    parent_shutdown_seconds: int = 0
    """How long they may."""

    def write(self, state_dir: Path) -> None:
        """Replaces the record in `state_dir`."""
        write_atomically(state_dir / NAME, json.dumps(dataclasses.asdict(self)).encode())

    @classmethod
    def of_earlier_parent(cls, state_dir: Path) -> EnvoyRecord:
        """What a parent that died leaves to the next one: the counts.

        How Envoy ended counts only if the parent ended because of that; else the supervisor knows how the parent ended.
        """
        try:
            told = json.loads((state_dir / NAME).read_bytes())
        except FileNotFoundError:
            return cls()
        return cls(restarts=told["restarts"], answered=told["answered"], last_exit="" if told["pid"] else told["last_exit"])
