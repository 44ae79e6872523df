"""What `convoy` prints: coloured and alive on a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.status import Status as Spinner

_PLAIN_WIDTH = 250  # no terminal: nothing is cut to fit a screen


class _PatientConsole(Console):
    """A console whose reader may leave (`convoy up --detach | head`): that must not stop what was started."""

    def on_broken_pipe(self) -> None:
        """Goes on without output."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class Terminal:
    """Standard output with one line at the bottom that changes."""

    def __init__(self) -> None:
        """Looks whether stdout is a terminal."""
        self.console = _PatientConsole(highlight=False)
        if not self.console.is_terminal:
            self.console = _PatientConsole(highlight=False, width=_PLAIN_WIDTH)
        self._spinner: Spinner | None = None
        self._last = ""
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """One line of text, never wrapped: what is printed can be copied and pasted."""
        self.console.print(Text(text), soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        """A table."""
        self.console.print(what, soft_wrap=True)

    def event(self, text: str) -> None:
        """Something that happened, with the time of day."""
        self.say(f"{time.strftime('%H:%M:%S')} {text}")

    def progress(self, text: str) -> None:
        """The changing line while something starts or stops; without a terminal a line for each new text."""
        self._update(f"{text} ({time.monotonic() - self._began:.0f} s)")
        if not self.console.is_terminal and text != self._last:
            self.say(text)
        self._last = text

    def live(self, text: str) -> None:
        """The changing line of figures; without a terminal nobody could see it change, so it is left out."""
        self._update(f"{text} · Ctrl-C stops")

    def settle(self) -> None:
        """Takes the changing line away."""
        if self._spinner:
            self._spinner.stop()
            self._spinner = None

    def _update(self, text: str) -> None:
        if not self.console.is_terminal:
            return
        if self._spinner is None:
            self._spinner = self.console.status(Text(text))
            self._spinner.start()
        self._spinner.update(Text(text))
