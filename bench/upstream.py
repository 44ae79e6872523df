"""The lightest pod: bytes that were made before, at once or as a paced stream. No HTTP library, so that Envoy is what a round measures."""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

CHUNKS = 64
PER_SECOND = 500.0
TEXT = "Token by token the answer comes, and each word of it weighs the same. " * 5
_HEAD = b"HTTP/1.1 200 OK\r\nx-convoy-pod: engine-1\r\ncontent-type: "
_DATA = b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"demo","choices":[{"index":0,"message":{"content":"%s"}}]}'
_FRAME = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"demo","choices":[{"index":0,'
_FRAME += b'"delta":{"content":" word"}}]}\n\n'
_JSON = _DATA % TEXT.encode()
_WHOLE = _HEAD + b"application/json\r\ncontent-length: %d\r\n\r\n" % len(_JSON) + _JSON
_STREAM = _HEAD + b"text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Pod(asyncio.Protocol):
    """One connection. It reads no more of a request than where it ends and whether a stream is wanted."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._read = b""
        self._transport: asyncio.Transport | None = None
        self._paces: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps where to write."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one, and says so to nobody

    def connection_lost(self, _error: Exception | None) -> None:
        """Ends a stream that nobody reads."""
        if self._paces:
            self._paces.cancel()

    def data_received(self, data: bytes) -> None:
        """Answers when a request is whole; Envoy sends the next one only then."""
        assert self._transport
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head):
            return
        self._read = b""
        if b'"stream": true' in body:
            self._paces = asyncio.create_task(self._stream(self._transport))
        else:
            self._transport.write(_WHOLE)

    async def _stream(self, transport: asyncio.Transport) -> None:
        transport.write(_STREAM)
        for _ in range(CHUNKS):
            await asyncio.sleep(1 / PER_SECOND)
            transport.write(b"%x\r\n%s\r\n" % (len(_FRAME), _FRAME))
        transport.write(b"0\r\n\r\n")


def _length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"content-length:")
    return int(rest.partition(b"\r\n")[0]) if found else 0


async def serve() -> None:
    """Until it is ended."""
    server = await asyncio.get_running_loop().create_server(Pod, "127.0.0.1", 0)
    print(f"serving {server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(uvloop.run(serve()))
