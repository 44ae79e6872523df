"""A stand-in pod that keeps each request as it came over the wire: in bytes, not in a library's reading.

It reads as strictly as it can: line ends are CRLF, a body has one framing. What it cannot read is kept in `malformed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Received:
    """One request, split and not interpreted."""

    method: str
    target: str
    version: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Every value of a header, in order."""
        return [value for key, value in self.headers if key == name]


class RawPod:
    """One pod in this process, which answers everything with 200 and `{"request": N, "target": …}`."""

    def __init__(self, name: str) -> None:
        """Listens once `start` was awaited, on a free port."""
        self.name = name
        self.port = 0
        self.seen: list[Received] = []
        """Requests but health questions."""
        self.malformed: list[bytes] = []
        """Beginnings of what was no request."""
        self.answer_bytes = 0
        """So many bytes are added to each answer's body."""
        self.pause = asyncio.Event()
        """An answer waits for it in the middle of its body; set unless a test clears it."""
        self.pause.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> RawPod:
        """Begins to listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Stops listening and ends every connection."""
        assert self._server is not None
        self._server.close()
        self.pause.set()
        for writer in list(self._writers):
            writer.transport.abort()

    def entry(self) -> dict[str, Any]:
        """Its line of the pods file."""
        return {"name": self.name, "host": "127.0.0.1", "port": self.port, "pid": os.getpid(), "started_at": 0.0}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    request = await self._read(reader)
                    is_question = request.target == "/readyz" and not request.all("x-client-id")
                    answer = self._answer(request, is_question=is_question)
                    writer.write(answer[:-10])
                    if not is_question:
                        await self.pause.wait()
                    writer.write(answer[-10:])
                    await writer.drain()
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Received:
        head = await reader.readuntil(b"\r\n\r\n")
        try:
            line, *fields = head[:-4].decode("latin-1").split("\r\n")
            method, target, version = line.split(" ")
            headers = tuple((name, value.strip(" ")) for name, colon, value in (field.partition(":") for field in fields))
            lengths = [value for name, value in headers if name == "content-length"]
            codings = [value for name, value in headers if name == "transfer-encoding"]
            assert all(":" in field and not set(field) & set("\r\n\0") for field in fields)
            assert len(lengths) + len(codings) <= 1
            assert codings in ([], ["chunked"])
            body = await (_chunks(reader) if codings else reader.readexactly(int(lengths[0]) if lengths else 0))
        except (AssertionError, ValueError):
            self.malformed.append(head)
            raise ConnectionError from None
        return Received(method, target, version, headers, body)

    def _answer(self, request: Received, *, is_question: bool) -> bytes:
        told: dict[str, object] = {"pod": self.name, "state": "ready"}
        if not is_question:
            self.seen.append(request)
            told = {"target": request.target, "method": request.method, "filler": "x" * self.answer_bytes}
        body = b"" if request.method == "HEAD" else json.dumps(told).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nx-convoy-pod: {self.name}\r\n\r\n"
        return head.encode() + body


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body without extensions and trailers, which no edge needs to pass on."""
    body = b""
    while True:
        size = int((await reader.readuntil(b"\r\n"))[:-2], 16)
        body += await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
        if not size:
            return body
