"""Why and how a pod ends: told by a signal or `POST /drain`, or because its engine is of no use any more."""

from __future__ import annotations

import asyncio

from msgspec import Struct

EXIT_LOAD_FAILED = 1
EXIT_ENGINE_DIED = 4
EXIT_ENGINE_STALLED = 5


class Ending(Struct, frozen=True):
    """An end at once, with the exit code and the reason, in one line, that the runner keeps."""

    code: int
    reason: str

    @property
    def word(self) -> str:
        """What the runner hears first: a pod that `failed` to load will fail again, one that `ended` may be started anew."""
        return "failed" if self.code == EXIT_LOAD_FAILED else "ended"


class Will:
    """What shall become of the pod. Draining may be asked for often; of ends at once the first one counts."""

    def __init__(self) -> None:
        """To live on."""
        self.ending: Ending | None = None
        self._told = asyncio.Event()
        self._ended = asyncio.Event()

    def drain(self) -> None:
        """The pod shall take nothing new, finish what runs, and end."""
        self._told.set()

    def end(self, code: int, reason: str) -> None:
        """The pod shall end at once."""
        if self.ending is None:
            self.ending = Ending(code, reason)
        self._told.set()
        self._ended.set()

    async def told(self) -> None:
        """Returns when the pod shall drain or end."""
        await self._told.wait()

    async def ended(self) -> None:
        """Returns when the pod shall end at once."""
        await self._ended.wait()
