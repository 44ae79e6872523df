"""A closed loop of streams by the leanest client that Python allows, so that what is measured is the server: bytes in, no objects."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DONE = b"data: [DONE]"
_CONTENT = b'"content":"'


@dataclass(slots=True)
class Streams:
    """What a loop saw: seconds until the first text of each stream, and until all were whole."""

    ttfts: list[float] = field(default_factory=list)
    seconds: float = 0.0


class _Client(asyncio.Protocol):
    """One connection that asks, reads to the end, and asks again while there are bodies."""

    def __init__(self, head: bytes, bodies: Iterator[bytes], seen: Streams, end: bytes) -> None:
        self._head, self._bodies, self._seen, self._end = head, bodies, seen, end
        self._longest = max(len(_CONTENT), len(end)) + 1
        self._tail = b""
        self._has_begun = False
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200"):
            self._fail(RuntimeError(f"the server answered {data[:200]!r}"))
            return
        text = self._tail + data
        if not self._has_begun and self._is_text(text):
            self._has_begun = True
            self._seen.ttfts.append(time.perf_counter() - self._asked_at)
        if self._end in text:
            self._ask()
        else:
            self._tail = text[-self._longest :]

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(error or ConnectionError(f"the server ended a stream early, after {self._tail!r}"))

    def _fail(self, error: Exception) -> None:
        if not self.over.done():
            self.over.set_exception(error)

    def _ask(self) -> None:
        body = next(self._bodies, None)
        self._tail, self._has_begun = b"", False
        if body is None:
            if not self.over.done():
                self.over.set_result(None)
            self._transport.close()
            return
        self._asked_at = time.perf_counter()
        self._transport.write(self._head + b"content-length: %d\r\n\r\n" % len(body) + body)

    @staticmethod
    def _is_text(text: bytes) -> bool:
        """Whether some delta is not empty, as the first one may be, which only names the role."""
        return any(piece[:1] not in {b'"', b""} for piece in text.split(_CONTENT)[1:])


async def loop(url: str, bodies: Sequence[bytes], clients: int, *, end: bytes = DONE) -> Streams:
    """`clients` connections that ask `bodies` between them, each of whose streams ends with `end`.

    Raises `ConnectionError` if a stream is not whole.
    """
    parts, seen, each = urlsplit(url), Streams(), iter(bodies)
    head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n".encode()
    running, host, port = asyncio.get_running_loop(), str(parts.hostname), int(parts.port or 80)
    start = time.perf_counter()
    made = [await running.create_connection(lambda: _Client(head, each, seen, end), host, port) for _ in range(clients)]
    await asyncio.gather(*(client.over for _, client in made))
    seen.seconds = time.perf_counter() - start
    return seen


def repeated(bodies: Sequence[bytes], number: int) -> list[bytes]:
    """As many as that, one after the other."""
    return list(itertools.islice(itertools.cycle(bodies), number))
