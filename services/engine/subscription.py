"""A reader's place in a run: it gets the whole text from the beginning, in whatever pieces it comes to fetch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from services.engine.runs import Run


class Subscription:
    """One reader's place in a run."""

    def __init__(self, run: Run) -> None:
        """At the beginning."""
        self.run = run
        self._next = 0
        self._is_nudged = False

    def nudge(self) -> None:
        """Has `read` return now, with no text if there is none."""
        self._is_nudged = True
        self.run.wake()

    async def read(self) -> tuple[Any, bool]:
        """The text that came since the last call (waits for some), and whether it was the last. Raises the run's error after all text."""
        run = self.run
        while True:
            is_nudged, self._is_nudged = self._is_nudged, False
            text, self._next = run.read(self._next)
            if run.finish_reason is not None:
                return text, True
            if text or is_nudged:
                return text, False
            if run.is_over:
                run.raise_error()
            await run.changed()

    async def whole(self) -> Any:
        """The whole text (of a remote engine: body), when the run is over. Raises the run's error."""
        run = self.run
        while not run.is_over and run.finish_reason is None:
            await run.changed()
        if run.finish_reason is None:
            run.raise_error()
        return run.read(0)[0]

    def close(self) -> None:
        """Leaves; to be called once."""
        self.run.leave()
