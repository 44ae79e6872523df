"""A restart of all pods as the runner goes through it: asked for, tried, begun by the new program, ended or taken back."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from msgspec import structs

from services.engine.succession import SIGNALS, Trial, succeed
from services.pods_file import Roll

if TYPE_CHECKING:
    from services.engine.rolling import Rolling
    from services.engine.succession import Inheritance
    from services.pods_wanted import Restart
    from services.settings import RunnerSettings


class Restarts:
    """The restart under way, if one is, and what is told of the last one."""

    def __init__(self, told: Roll | None, rolling: Rolling | None = None) -> None:
        """`told`: what the pods file says of the last one. One that has no end is broken off, unless `rolling` goes on with it."""
        self.rolling = rolling
        self.told = told if rolling or told is None or told.is_over else _failed(told, "the runner died meanwhile; see `convoy status`")
        self._trial: Trial | None = None

    @property
    def is_busy(self) -> bool:
        """Whether one is under way."""
        return self._trial is not None or self.rolling is not None

    def ask(self, asked: Restart, running: RunnerSettings, number: int, *, is_possible: bool) -> None:
        """Begins one of so many pods by trying what they would run, or cancels the one under way."""
        if asked.is_cancelled:
            self._cancel()
            return
        told = Roll(id=asked.id, state="checking", total=number, progress="trying settings and code")
        if self.is_busy or not is_possible:
            self.told = _failed(told, "pods are being replaced already; ask again when that is over")
        else:
            self.told, self._trial = told, Trial(asked, running)

    def tried(self) -> Restart | None:
        """The restart for whose settings and code the trial went well; then the new program is to follow."""
        outcome = self._trial.outcome() if self._trial else None
        if outcome:
            self.fail_trial(outcome)
        return self._trial.asked if self._trial and outcome is not None else None

    def succeed(self, left: Inheritance) -> None:
        """Does not return, unless the new program cannot be run."""
        try:
            succeed(left)
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            self.fail_trial(f"the new runner cannot be run: {error}")

    def fail_trial(self, reason: str) -> None:
        """The trial's end, in vain."""
        self._trial = None
        if self.told:
            self.told = _failed(self.told, reason)

    def look(self) -> Rolling | None:
        """The roll if it has come to its end just now."""
        rolling = self.rolling
        if rolling is None:
            return None
        self.told = rolling.told()
        if not rolling.is_over:
            return None
        self.rolling = None
        return rolling

    def stop(self) -> None:
        """The runner ends."""
        if self._trial:
            self._trial.end()
            self.fail_trial("the runner was stopped")
        elif self.rolling and self.told:
            self.told, self.rolling = _failed(self.told, "the runner was stopped"), None

    def _cancel(self) -> None:
        if self._trial:
            self._trial.end()
            self.fail_trial("it was cancelled")
        elif self.rolling:
            self.rolling.fail("it was cancelled")


def _failed(told: Roll, reason: str) -> Roll:
    return structs.replace(told, state="failed", progress="", reason=reason, is_mixed=bool(told.replaced))
