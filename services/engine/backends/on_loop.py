"""What an engine's thread has the event loop do."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from services.engine.generation import BackendError


def call(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> None:
    """Calls a function there soon; nothing happens if the loop is closed: nobody reads any more."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)


def settle(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None], error: BackendError | None) -> None:
    """Ends what somebody there waits for, unless that was cancelled meanwhile."""
    call(loop, _settle, future, error)


def _settle(future: asyncio.Future[None], error: BackendError | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
