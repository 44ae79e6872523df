"""HTTP/2 in clear text (h2c, prior knowledge), frame by frame: for what no library would send. It understands just what a test asks for."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_STATIC = {0x88: 200, 0x89: 204, 0x8A: 206, 0x8B: 304, 0x8C: 400, 0x8D: 404, 0x8E: 500}
_DIGITS = {"00000": "0", "00001": "1", "00010": "2"} | {f"{code:06b}": str(code - 22) for code in range(0b011001, 0b100000)}
"""Huffman codes of the digits (RFC 7541, appendix B)."""


@dataclass
class H2Stream:
    """What came back on one stream."""

    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    reset: int | None = None
    """Error code of the edge's RST_STREAM."""
    ended: bool = False


class H2Client(asyncio.Protocol):
    """One connection. Streams have the numbers that the test gives them; odd ones are a client's."""

    def __init__(self) -> None:
        """Use `h2_connection`."""
        self.streams: dict[int, H2Stream] = {}
        self.settings: dict[int, int] = {}
        self.goaway: int | None = None
        self.closed = False
        self._data = bytearray()
        self._changed = asyncio.Event()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Opens with large windows, and without a table of headers, so that each header block stands for itself."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(_PREFACE)
        self.send(SETTINGS, 0, 0, struct.pack(">HIHI", 1, 0, 4, (1 << 31) - 1))
        self.send(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 30))

    def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        """One frame; none once the connection has ended."""
        if self.transport.is_closing():
            return
        self.transport.write(struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload)

    def request(self, stream: int, headers: Iterable[tuple[str, str]], body: bytes | None = None, *, is_open: bool = False) -> H2Stream:
        """A request as given; `body` None: there is none, or with `is_open` it has not come yet."""
        block = b"".join(b"\0" + _text(name) + _text(value) for name, value in headers)
        for at in range(0, max(len(block), 1), 16_384):
            is_last = at + 16_384 >= len(block)
            kind, flags = (9 if at else HEADERS), (END_HEADERS if is_last else 0) | (0 if at or is_open or body is not None else END_STREAM)
            self.send(kind, flags, stream, block[at : at + 16_384])
        if body is not None:
            for at in range(0, len(body), 16_384):
                self.send(DATA, 0, stream, body[at : at + 16_384])
            self.send(DATA, END_STREAM, stream)
        return self.streams.setdefault(stream, H2Stream())

    async def until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        """Waits until `condition` holds; it is asked whenever something came."""
        while not condition():
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), seconds)

    async def breathe(self) -> None:
        """Lets what was written go, and what came be read."""
        await asyncio.sleep(0)

    async def until_over(self, stream: H2Stream) -> None:
        """Waits until a stream, or the connection, has ended."""
        await self.until(lambda: stream.ended or self.closed)

    def data_received(self, data: bytes) -> None:
        """Takes frames apart."""
        self._data += data
        while len(self._data) >= 9 and len(self._data) >= 9 + (size := int.from_bytes(self._data[:3], "big")):
            kind, flags, stream = self._data[3], self._data[4], int.from_bytes(self._data[5:9], "big")
            payload = bytes(self._data[9 : 9 + size])
            del self._data[: 9 + size]
            self._take(kind, flags, self.streams.setdefault(stream, H2Stream()), payload)
        self._changed.set()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Says so to whoever waits."""
        self.closed = True
        self._changed.set()

    def _take(self, kind: int, flags: int, stream: H2Stream, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self.settings.update(struct.iter_unpack(">HI", payload))
            self.send(SETTINGS, ACK, 0)
        elif kind == GOAWAY:
            self.goaway = int.from_bytes(payload[4:8], "big")
        elif kind == RST_STREAM:
            stream.reset, stream.ended = int.from_bytes(payload, "big"), True
        elif kind in {DATA, HEADERS}:
            if kind == DATA:
                stream.body += payload
            elif not stream.status:
                stream.status = _status(payload)
            stream.ended = stream.ended or bool(flags & END_STREAM)


@contextlib.asynccontextmanager
async def h2_connection(port: int) -> AsyncIterator[H2Client]:
    """A connection that is dropped at the end."""
    _, client = await asyncio.get_running_loop().create_connection(H2Client, "127.0.0.1", port)
    try:
        yield client
    finally:
        client.transport.abort()


def _text(text: str) -> bytes:
    data = text.encode("latin-1")
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, number = len(data) - 127, bytearray([127])
    while rest >= 128:
        number.append(rest % 128 + 128)
        rest //= 128
    return bytes([*number, rest]) + data


def _status(block: bytes) -> int:
    """The first header of an answer, which is its status: one of the static table, or a literal."""
    while block[0] & 0xE0 == 0x20:  # the edge has taken note that there is no table
        block = block[1:]
    if block[0] in _STATIC:
        return _STATIC[block[0]]
    assert block[0] in {0x08, 0x18, 0x48}, block
    value = block[2 : 2 + (block[1] & 0x7F)]
    if not block[1] & 0x80:
        return int(value)
    bits, digits = "".join(f"{byte:08b}" for byte in value), ""
    while len(digits) < 3:
        size = 5 if bits[:5] in _DIGITS else 6
        digits += _DIGITS[bits[:size]]
        bits = bits[size:]
    return int(digits)
