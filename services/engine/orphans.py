"""Pods of an earlier runner, known only by their lines in the pods file: whether they live, and how they are told to end."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec import structs

from services.engine.identity import start_ticks
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from services.pods_file import PodEntry

log = get_logger()


class Orphan:
    """One of them, until a pod of this runner has its place."""

    def __init__(self, entry: PodEntry, max_drain_seconds: float) -> None:
        """As the earlier runner left it. `max_drain_seconds`: then it is killed."""
        self.name = entry.name
        self._max_drain_seconds = max_drain_seconds
        self._kill_at = float("inf")
        self.is_retiring = entry.is_leaving
        self._entry = entry

    @property
    def is_over(self) -> bool:
        """Whether it is gone."""
        return not is_alive(self._entry)

    def entry(self) -> PodEntry:
        """Its line in the pods file."""
        return structs.replace(self._entry, is_leaving=self.is_retiring)

    def retire(self) -> None:
        """Has it drain."""
        if not self.is_retiring:
            self.is_retiring = True
            self._kill_at = time.monotonic() + self._max_drain_seconds
            log.info("runner.orphan_drains", pod=self.name, pid=self._entry.pid)
            self.signal(signal.SIGTERM)

    def care(self) -> None:
        """Ends it if it does not end in time."""
        if time.monotonic() > self._kill_at:
            self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Signals the process, if it is still this pod."""
        if not self.is_over:
            with suppress(ProcessLookupError):
                os.kill(self._entry.pid, number)


def is_alive(entry: PodEntry) -> bool:
    """Whether the process is still this pod, and not another one with its number."""
    return entry.start_ticks > 0 and start_ticks(entry.pid) == entry.start_ticks
