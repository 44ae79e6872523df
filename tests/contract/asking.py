"""What several of these tests ask a pod, and how they wait for its numbers."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from typing import TYPE_CHECKING, Any

from tests.running import DEADLINE_SECONDS

if TYPE_CHECKING:
    import aiohttp

CHAT = "/v1/chat/completions"


def body(**more: object) -> dict[str, Any]:
    """A streamed chat request."""
    return {"messages": [{"role": "user", "content": "Hello!"}], "stream": True, "max_tokens": 20} | more


async def metric(session: aiohttp.ClientSession, url: str, name: str) -> float:
    """The sum of a metric's series."""
    async with session.get(url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}(\{{|\s)", line))


async def until_metric(session: aiohttp.ClientSession, url: str, name: str, value: float) -> None:
    """Waits until a metric has a value."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (now := await metric(session, url, name)) != value:
        assert time.monotonic() < deadline, f"{name} is {now}, not {value}"
        await asyncio.sleep(0.01)


def unread(url: str, *lines: str, **more: object) -> socket.socket:
    """A stream that is asked for and not read, by a client whose receive buffer is as small as the system allows; `lines` of headers."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # before it connects: its window is announced then
    connection.connect((host, int(port)))
    content = json.dumps(body(**more)).encode()
    head = [f"POST {CHAT} HTTP/1.1", "Host: pod", "Connection: close", f"Content-Length: {len(content)}", *lines, "", ""]
    connection.sendall("\r\n".join(head).encode() + content)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    connection.settimeout(DEADLINE_SECONDS)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # through a window as small as before it would take minutes
    with connection:
        return b"".join(iter(lambda: connection.recv(1 << 20), b""))
