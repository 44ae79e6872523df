"""What `convoy` asks of the runner, in two files of STATE_DIR; SIGUSR1 has the runner read them. What came of it is in the pods file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from services.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

NUMBER_NAME = "pods_wanted"
"""A number: so many pods. It holds for a later runner, too."""
RESTART_NAME = "pods_restart.json"


class Restart(Struct, frozen=True, kw_only=True):
    """All pods anew, one after the other. `settings`: the variables that the new ones shall have, beside those that stay.

    `limit_seconds`: for each pod, from its start to its first request. `is_cancelled`: stop, and take back what was done.
    """

    id: str
    settings: dict[str, str] = {}
    limit_seconds: float = 600.0
    is_cancelled: bool = False


def write_number(state_dir: Path, number: int) -> None:
    """Asks for so many pods."""
    write_atomically(state_dir / NUMBER_NAME, f"{number}\n".encode())


def write_restart(state_dir: Path, restart: Restart) -> None:
    """Asks for a restart; for nobody else to read, settings may tell of the machine."""
    write_atomically(state_dir / RESTART_NAME, msgspec.json.encode(restart), mode=0o600)


def read_restart(state_dir: Path) -> Restart | None:
    """What was asked for last; None if nothing was, or if it cannot be read."""
    try:
        return msgspec.json.decode((state_dir / RESTART_NAME).read_bytes(), type=Restart)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
