"""What people ask of the runner while it runs, as it lies in files: how many pods, and to replace them all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from services import pods_wanted
from services.files import write_atomically
from services.settings.declared import MAX_PODS
from services.settings.reader import given, given_path
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from services.pods_wanted import Restart

log = get_logger()


class Requests:
    """The files, and which restart was heard of last."""

    def __init__(self, state_dir: Path) -> None:
        """What was asked of an earlier runner is not asked of this one."""
        self._state_dir = state_dir
        asked = pods_wanted.read_restart(state_dir)
        self._heard = asked.id if asked else ""
        self._is_cancelled = True

    def number(self, otherwise: int) -> int:
        """How many pods are wanted; a file that does not say it changes nothing."""
        path = self._state_dir / pods_wanted.NUMBER_NAME
        if not path.exists():
            return otherwise
        text = path.read_text().strip()
        if not text.isdigit() or not 1 <= int(text) <= MAX_PODS:
            log.error("runner.bad_scale", path=str(path), text=text[:100], allowed=f"a whole number from 1 to {MAX_PODS}")
            return otherwise
        return int(text)

    def restart(self) -> Restart | None:
        """A restart that was asked for since the last call, or that the last one is cancelled; each is told once."""
        asked = pods_wanted.read_restart(self._state_dir)
        if asked is None or (asked.id == self._heard and (self._is_cancelled or not asked.is_cancelled)):
            return None
        if asked.id != self._heard and asked.is_cancelled:
            return None  # never heard of, so there is nothing to cancel
        self._heard, self._is_cancelled = asked.id, asked.is_cancelled
        return asked

    def resume(self, asked: Restart) -> None:
        """The program before this one has heard of it; it may be cancelled."""
        self._heard, self._is_cancelled = asked.id, False

    def keep(self, asked: Restart) -> None:
        """Its settings hold from now on, for a later runner, too; for nobody else to read."""
        fresh = given(self._state_dir, "runner") | asked.settings
        write_atomically(given_path(self._state_dir, "runner"), msgspec.json.encode(fresh), mode=0o600)
