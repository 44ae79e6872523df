"""Pods that an earlier runner left: they serve until this runner's own have taken their places, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.engine.orphans import Orphan, is_alive
from services.engine.places import STOP_MARGIN_SECONDS, name_of
from services.engine.replacing import Replacing, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from services.engine.places import Place
    from services.pods_file import PodEntry
    from services.settings import RunnerSettings


class Takeover:
    """The orphans, and whose turn it is."""

    def __init__(self, entries: Iterable[PodEntry], settings: RunnerSettings, is_in_service: Callable[[PodEntry], bool]) -> None:
        """Of `entries` those that live."""
        self._settings = settings
        self._is_in_service = is_in_service
        self._replacing = Replacing([], _nobody, is_in_service)
        longest = settings.drain_timeout_seconds + STOP_MARGIN_SECONDS
        self.orphans = [Orphan(entry, longest) for entry in entries if is_alive(entry)]

    def begin(self, numbers: range, make: Callable[[int], Place], make_successor: Callable[[int], Place]) -> list[Place]:
        """The places that have no orphan, which start at once; the others follow in turn."""
        serving = {orphan.name: orphan for orphan in self.orphans if not orphan.is_retiring}
        turns = [Turn(number, serving[name]) for number in numbers if (name := name_of(self._settings, number)) in serving]
        self._replacing = Replacing(turns, make_successor, self._is_in_service)
        return [make(number) for number in numbers if number not in {turn.number for turn in turns}]

    def advance(self) -> list[Place]:
        """Does what is due now; the places that were made for it."""
        if not self.orphans:
            return []
        made = self._replacing.advance()
        for orphan in self.orphans:
            if self._replacing.current is None:
                orphan.retire()  # nobody has its place: there shall be fewer than there were
            orphan.care()
        self.orphans = [orphan for orphan in self.orphans if not orphan.is_over]
        return made


def _nobody(_: int) -> Place:
    raise AssertionError("there are no turns")
