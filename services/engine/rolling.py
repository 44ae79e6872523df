"""A restart of all pods: each is replaced by one with the new settings; where one fails, those that are new already are taken back."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Literal

from services.engine.replacing import Replacing, Turn
from services.pods_file import Roll
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.engine.places import Place
    from services.pods_file import PodEntry
    from services.pods_wanted import Restart

log = get_logger()

Which = Literal["after", "before"]


class Rolling:
    """One restart, from its first pod to its end."""

    def __init__(
        self,
        asked: Restart,
        places: Sequence[Place],
        make: Callable[[Which, int], Place],
        is_in_service: Callable[[PodEntry], bool],
    ) -> None:
        """`make` gives a place with the settings of after the restart, or of before, beside the number's old one."""
        self._asked = asked
        self._make = make
        self._is_in_service = is_in_service
        self._total = len(places)
        self._state: Literal["rolling", "taking back", "done", "failed"] = "rolling"
        self._reason = ""
        self._is_mixed = False
        self._dropped: list[Place] = []
        self._replacing = self._turns("after", places)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self._state in {"done", "failed"}

    @property
    def has_succeeded(self) -> bool:
        """Whether the new settings are in force from now on."""
        return self._state == "done"

    def told(self) -> Roll:
        """For the pods file."""
        return Roll(
            id=self._asked.id,
            state=self._state,
            total=self._total,
            replaced=sum(turn.is_over for turn in self._replacing.turns),
            progress=self._replacing.progress(),
            reason=self._reason,
            is_mixed=self._is_mixed,
        )

    def advance(self) -> list[Place]:
        """Does what is due now; the places that were made for it."""
        if self.is_over:
            return []
        made = self._replacing.advance()
        failure = self._replacing.failure(self._asked.limit_seconds)
        if failure:
            self.fail(failure)
        elif self._replacing.current is None and all(place.is_over for place in self._dropped):
            self._end("done" if self._state == "rolling" else "failed")
        return made

    def fail(self, reason: str) -> None:
        """Goes back to what was before; one that fails on the way back leaves things as they are."""
        if self.is_over:
            return
        log.error("runner.roll_failed", reason=reason, state=self._state)
        for turn in self._replacing.turns:
            if turn.new and not turn.is_relieved:
                self._drop(turn.new)
        if self._state == "taking back":
            self._reason += f"; and on the way back: {reason}"
            self._is_mixed = True
            self._end("failed")
            return
        self._state, self._reason = "taking back", reason
        self._replacing = self._turns("before", [turn.new for turn in self._replacing.replaced if turn.new])

    def _turns(self, settings: Which, places: Sequence[Place]) -> Replacing:
        return Replacing([Turn(place.number, place) for place in places], lambda number: self._make(settings, number), self._is_in_service)

    def _end(self, state: Literal["done", "failed"]) -> None:
        self._state = state
        log.info("runner.roll_ended", state=state, reason=self._reason, id=self._asked.id)

    def _drop(self, place: Place) -> None:
        """Ends a pod that shall not serve; one that requests may come to already drains."""
        is_ready = place.is_ready
        place.retire()
        if not is_ready:
            place.signal(signal.SIGKILL)
        self._dropped.append(place)
