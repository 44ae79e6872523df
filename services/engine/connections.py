"""A pod's connections: what is not HTTP gets OpenAI's error body, and a client that reads nothing for too long is let go."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http import HttpProcessingError

from services.engine.middleware import error_response
from services.openai.errors import BadRequest
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.telemetry.metrics import Metrics

log = get_logger()

_TICKS = 10
"""How often a connection is looked at within its time."""
_FLUSH_SECONDS = 0.02

Mark = tuple[int, int, int]
"""How much waits here, how much in the kernel, and how often writing went on: it changes when the client reads."""


class PodProtocol(web.RequestHandler):
    """aiohttp's connection, and how much of its answers waits to be read."""

    num_resumed = 0
    """How often the client has made room for more."""

    def resume_writing(self) -> None:
        """Counts; for the rest see aiohttp."""
        self.num_resumed += 1
        super().resume_writing()

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered, to its last byte."""
        return self._request_in_progress or self.unsent > 0

    def mark(self) -> Mark:
        """Another one than before whenever the client has read something."""
        assert self.transport is not None
        in_kernel = bytes(4)
        with suppress(OSError):  # a system that does not tell
            in_kernel = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, in_kernel)
        return self.unsent, struct.unpack("i", in_kernel)[0], self.num_resumed

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,  # noqa: ARG002 - the signature is aiohttp's
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Overrides aiohttp's plain text page."""
        if request.writer.output_size > 0:
            raise ConnectionError("The answer is under way; it cannot become an error")
        reason = (message or "").splitlines()[0] if isinstance(exc, HttpProcessingError) and message else "it cannot be read"
        error = BadRequest(f"This is no valid HTTP request: {reason}")
        response = error_response(error)
        response.headers["x-request-id"] = "-"
        response.force_close()
        return response


def connections_of(server: web.Server) -> Iterator[PodProtocol]:
    """Those that are open."""
    return (one for one in server.connections if isinstance(one, PodProtocol) and one.transport is not None)


async def all_answered(server: web.Server) -> None:
    """Returns when no request is being answered and no answer waits to be read."""
    while any(one.is_busy for one in connections_of(server)):  # noqa: ASYNC110 - aiohttp and the kernel have no event for it
        await asyncio.sleep(_FLUSH_SECONDS)


async def end_slow_readers(server: web.Server, limit_seconds: float, metrics: Metrics) -> None:
    """Ends, for ever, connections on which an answer waits and nothing was read for `limit_seconds`; to be cancelled.

    It counts looks, not the clock: while this process stands still no client can read.
    """
    silent: dict[PodProtocol, tuple[Mark, int]] = {}
    while True:
        await asyncio.sleep(limit_seconds / _TICKS)
        before, silent = silent, {}
        for one in connections_of(server):
            if not one.unsent:
                continue
            mark = one.mark()
            seen, looks = before.get(one, (None, 0))
            looks = looks + 1 if mark == seen else 0
            silent[one] = mark, looks
            if looks >= _TICKS and one.transport is not None:
                log.warning("client.reads_nothing", unsent_bytes=one.unsent, limit_seconds=limit_seconds)
                metrics.slow_clients.inc()
                one.transport.abort()
                del silent[one]
