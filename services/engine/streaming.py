"""One answer as server-sent events: headers with the first token, comments while it is silent, usage and times at the end."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from aiohttp import web

from services.openai.chunks import comment, error_event
from services.openai.errors import ApiError
from services.openai.responses import count_usage

if TYPE_CHECKING:
    from services.engine.exchange import Exchange
    from services.engine.subscription import Subscription
    from services.openai.chunks import Chunks

_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def stream(
    request: web.Request, exchange: Exchange, subscription: Subscription, chunks: Chunks, keepalive_seconds: float
) -> web.StreamResponse:
    """Answers with a run's text as it comes. Raises the run's error if there is no token yet and no header was sent."""
    response, run = web.StreamResponse(headers=_HEADERS), subscription.run
    silent_until = exchange.arrived_at + keepalive_seconds
    while not await run.has_begun(max(0.0, silent_until - time.monotonic())):
        await _begin(request, exchange, response)
        await response.write(comment("keepalive"))
        silent_until = time.monotonic() + keepalive_seconds
    if not run.first_token_at and not response.prepared:
        run.raise_error()  # before any byte it is still a true status code
    await _begin(request, exchange, response)
    keepalive = _Keepalive(subscription, keepalive_seconds)
    with keepalive:
        await _send(response, exchange, subscription, chunks, keepalive)
    return response


class _Keepalive:
    """Nudges a stream's reader when nothing was sent for so long. One timer a stream, which no token has to move."""

    def __init__(self, subscription: Subscription, seconds: float) -> None:
        self._subscription = subscription
        self._seconds = seconds
        self._sent_at = time.monotonic()

    def __enter__(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def sent(self) -> None:
        """Something was."""
        self._sent_at = time.monotonic()

    def _look(self) -> None:
        left = self._sent_at + self._seconds - time.monotonic()
        if left <= 0:
            self._subscription.nudge()
        self._timer = asyncio.get_running_loop().call_later(left if left > 0 else self._seconds, self._look)


async def _begin(request: web.Request, exchange: Exchange, response: web.StreamResponse) -> None:
    """Sends the headers, once."""
    if not response.prepared:
        response.headers.update(exchange.headers())
        exchange.has_begun = True
        await response.prepare(request)


async def _send(
    response: web.StreamResponse, exchange: Exchange, subscription: Subscription, chunks: Chunks, keepalive: _Keepalive
) -> None:
    """All frames; several that are ready together leave in one write. After the first byte an error is a last event, and no `[DONE]`."""
    run, opening = subscription.run, chunks.role()
    try:
        while True:
            text, is_last = await subscription.read()
            frames = opening + chunks.delta(text) if text else opening
            opening = b""
            if is_last:
                break
            await response.write(frames if text else frames + comment("keepalive"))
            keepalive.sent()
    except ApiError as error:
        exchange.error = error
        await response.write_eof(error_event(error))
        return
    assert run.finish_reason is not None
    usage = count_usage(run.num_prompt_tokens, run.num_tokens, run.num_cached_tokens)
    times = comment("server-timing " + exchange.server_timing())
    await response.write_eof(frames + chunks.end(run.finish_reason, usage, times))
