"""Pods replaced by others, one after the other, so that there is never one fewer that takes requests than there shall be."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.engine.places import Place
    from services.pods_file import PodEntry


class Old(Protocol):
    """A pod that shall go: of this runner, or left by an earlier one."""

    name: str
    is_retiring: bool

    @property
    def is_over(self) -> bool:
        """Whether it is gone."""

    def retire(self) -> None:
        """Has it drain and end."""


@dataclass
class Turn:
    """One pod's replacement: `new` is started, is in service, then `old` goes."""

    number: int
    old: Old
    new: Place | None = None
    began: float = 0.0
    is_relieved: bool = False
    """The new one was in service once, so the old one may go."""

    @property
    def is_over(self) -> bool:
        """Whether the new one is alone."""
        return self.is_relieved and self.old.is_over


class Replacing:
    """The turns, in order. A pod that is gone before its turn is not waited for: the one that follows it starts at once."""

    def __init__(self, turns: Sequence[Turn], make: Callable[[int], Place], is_in_service: Callable[[PodEntry], bool]) -> None:
        """`make` gives the place that follows in a number; `is_in_service` says whether requests come to a pod."""
        self.turns = list(turns)
        self._make = make
        self._is_in_service = is_in_service

    @property
    def current(self) -> Turn | None:
        """The turn that is on; None after the last."""
        return next((turn for turn in self.turns if not turn.is_over), None)

    @property
    def replaced(self) -> list[Turn]:
        """The turns whose new pod has taken over."""
        return [turn for turn in self.turns if turn.is_relieved]

    def advance(self) -> list[Place]:
        """Does what is due now; the places that were made for it."""
        made = []
        current = self.current
        for turn in self.turns:
            if turn.new is None and (turn is current or turn.old.is_over):
                turn.new, turn.began = self._make(turn.number), time.monotonic()
                made.append(turn.new)
            if turn.new is not None and not turn.is_relieved:
                entry = turn.new.entry()
                turn.is_relieved = turn.new.is_ready and entry is not None and self._is_in_service(entry)
        if current and current.is_relieved:
            current.old.retire()
        return made

    def failure(self, limit_seconds: float) -> str:
        """Why the turns cannot go on: a new pod that died, or one that took too long; empty while they can."""
        for turn in self.turns:
            new = turn.new
            if new is None:
                continue
            if new.restarts:
                return f"{new.name}: {new.load_failure or new.last_exit}"
            if not turn.is_relieved and time.monotonic() - turn.began > limit_seconds:
                waits = "is ready, but Envoy does not take it in" if new.is_ready else "is not ready"
                return f"{new.name} {waits} after {limit_seconds:g} s"
        return ""

    def progress(self) -> str:
        """What the current turn is at, in words; empty after the last."""
        turn = self.current
        if turn is None or turn.new is None:
            return ""
        old = turn.old
        if turn.is_relieved:
            return f"{old.name}: the new one serves, the old one finishes its requests"
        return f"{old.name}: the new one waits for Envoy" if turn.new.is_ready else f"{old.name}: the new one loads"
