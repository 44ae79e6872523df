"""Clients that ask for a large answer and do not read it."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import aiohttp
import pytest

from tests.contract.asking import metric, read_all, unread, until_metric
from tests.running import DEADLINE_SECONDS, running_pods, until

LIMIT_SECONDS = 2.0
# More than the kernel takes for a client that reads nothing.
LARGE: dict[str, Any] = {"max_tokens": 1_000_000, "ignore_eos": True}
SETTINGS: dict[str, Any] = {"fake_tokens_per_second": 1e6, "max_model_len": 2_000_000, "slow_client_timeout_seconds": LIMIT_SECONDS}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_reads_nothing_loses_its_connection(stream: bool) -> None:
    """Its connection breaks after SLOW_CLIENT_TIMEOUT_SECONDS, visibly; it is counted and logged, and nothing of it is left."""
    with running_pods(1, **SETTINGS) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            connection = unread(pods.url, **LARGE, stream=stream)
            await until_metric(session, pods.url, "llm_generation_tokens_total", LARGE["max_tokens"])
            await until_metric(session, pods.url, "llm_slots_in_use", 0)
            start = time.monotonic()
            await until_metric(session, pods.url, "llm_slow_clients_total", 1)
            assert time.monotonic() - start < LIMIT_SECONDS * 3
            await until_metric(session, pods.url, "llm_requests_in_progress", 0)
            raw = await asyncio.to_thread(read_broken, connection)
            assert raw.startswith(b"HTTP/1.1 200 OK")
            assert not raw.endswith((b"0\r\n\r\n", b"}")), "neither a whole stream nor a whole JSON answer"
        assert '"client.reads_nothing"' in pods.log()


async def test_a_client_that_reads_slowly_is_left_alone() -> None:
    """Whoever reads a little within each limit gets everything, however long it takes."""
    with running_pods(1, **(SETTINGS | {"slow_client_timeout_seconds": 1})) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            connection = unread(pods.url, **LARGE, stream=False)
            start = time.monotonic()
            taken = await asyncio.to_thread(read_little, connection, 4.0)
            assert time.monotonic() - start >= 4
            rest = await asyncio.to_thread(read_all, connection)
            assert b'"finish_reason":"length"' in (taken + rest)[-400:]
            assert await metric(session, pods.url, "llm_slow_clients_total") == 0


async def test_idle_connections_and_waiting_clients_are_not_slow_ones() -> None:
    """A connection without an answer to read, and one whose answer is not there yet, outlast the limit."""
    with running_pods(1, fake_first_token_ms=2000, slow_client_timeout_seconds=0.3) as pods:
        async with aiohttp.ClientSession(pods.url) as session, session.post("/chat", json={"message": "Hello!"}) as response:
            assert response.status == 200
            assert await metric(session, pods.url, "llm_slow_clients_total") == 0
        until(lambda: "request.done" in pods.log(), pods.log)


def read_broken(connection: socket.socket) -> bytes:
    """What had been sent before the connection broke."""
    connection.settimeout(DEADLINE_SECONDS)
    # Through a window as small as before, a kernel sends a few bytes each fifth of a second.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    raw = bytearray()
    with connection:
        try:
            while part := connection.recv(1 << 16):
                raw += part
        except ConnectionResetError:
            pass
    return bytes(raw)


def read_little(connection: socket.socket, seconds: float) -> bytes:
    """Reads a small piece now and again for so long."""
    connection.settimeout(DEADLINE_SECONDS)
    raw, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        raw += connection.recv(2000)
        time.sleep(0.05)  # the slowness itself is what is tested
    return raw
