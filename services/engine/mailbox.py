"""The way of one request's tokens from the engine to their reader: what was not read yet is merged, so a slow reader delays nobody."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from services.engine.generation import TokenEvent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.engine.generation import FinishReason


class Mailbox:
    """One writer, one reader, both on the event loop; an engine thread writes by way of `call_soon_threadsafe`."""

    __slots__ = ("_error", "_event", "_waiter")

    def __init__(self) -> None:
        """Starts empty."""
        self._event: TokenEvent | None = None
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(
        self, token_ids: Sequence[int], *, num_tokens: int, finish_reason: FinishReason | None = None, num_cached_tokens: int = 0
    ) -> None:
        """Adds drawn tokens; `num_tokens` counts a stop token that is not among `token_ids`."""
        event = self._event
        if event is None:
            event = self._event = TokenEvent()
        event.token_ids.extend(token_ids)
        event.num_tokens += num_tokens
        event.num_cached_tokens += num_cached_tokens
        event.finish_reason = finish_reason
        self._wake()

    def fail(self, error: Exception) -> None:
        """The reader gets what was put before, then `error`."""
        self._error = error
        self._wake()

    async def get(self) -> TokenEvent:
        """Everything put since the last call; waits while there is nothing. Raises what `fail` was given."""
        while self._event is None:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        event, self._event = self._event, None
        return event

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
