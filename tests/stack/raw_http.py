"""Bytes to a port and back: for requests that no HTTP library would send."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RawAnswer:
    """One HTTP/1.x answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The inner object of OpenAI's error body; fails if the body is anything else."""
        body = json.loads(self.body)
        assert set(body) == {"error"}, body
        error: dict[str, Any] = body["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        return error


async def exchange(port: int, data: bytes, deadline_seconds: float = 30.0) -> RawAnswer:
    """Sends `data` and reads one answer (by its content-length, or to the end of the connection)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await asyncio.wait_for(_read(reader), deadline_seconds)
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> RawAnswer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    status = int(head[0].split()[1])
    length = "0" if status < 200 else headers.get("content-length")
    body = await (reader.readexactly(int(length)) if length is not None else reader.read())
    return RawAnswer(status, headers, body)


class _Collector(asyncio.Protocol):
    """Everything that comes until the connection ends, by a reset, too (a stream reader loses what it had not handed out by then)."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def conversation(port: int, data: bytes, deadline_seconds: float = 30.0) -> list[RawAnswer]:
    """Sends `data` and reads every answer until the edge ends the connection; an interim one (1xx) is an answer of its own."""
    transport, collector = await asyncio.get_running_loop().create_connection(_Collector, "127.0.0.1", port)
    try:
        transport.write(data)
        await asyncio.wait_for(asyncio.shield(collector.ended), deadline_seconds)
    finally:
        transport.abort()
    reader = asyncio.StreamReader()
    reader.feed_data(bytes(collector.data))
    reader.feed_eof()
    answers = []
    while not reader.at_eof():
        answers.append(await _read(reader))
    return answers
