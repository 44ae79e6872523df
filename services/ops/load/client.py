"""The client: asks in an open loop, when a request is due and not when an earlier one is answered, and says what became of each."""

from __future__ import annotations

import asyncio
import errno
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from services.ops.load.kinds import plan
from services.ops.load.seen import OK, Seen
from services.ops.load.sse import EventReader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.ops.load.arrivals import Stage
    from services.ops.load.kinds import Kind, Planned
    from services.ops.load.outcome import Outcome


async def run_load(  # noqa: PLR0913 - what a load is
    url: str,
    mix: Sequence[Kind],
    stages: Sequence[Stage],
    *,
    seed: int = 0,
    headers: Mapping[str, str] | None = None,
    time_limit: float = 60.0,
) -> list[Outcome]:
    """Puts a load on the server at `url`; the outcomes in the order in which they were intended, when the last one is over.

    Requests begin when they are due, however many are open: nothing bounds the connections. A request that takes longer than `time_limit`
    seconds is given up, with status 0.
    """
    planned = plan(mix, stages, seed)
    # No jar, no decompression, no limit: whatever the client does itself, it would do to the figures.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(connector=connector, cookie_jar=jar, auto_decompress=False) as session:
        client = _Client(session, {kind.name: _Way.of(url, kind, headers or {}, time_limit) for kind in mix})
        return await client.run(planned)


@dataclass(frozen=True)
class _Way:
    """What all requests of a kind share."""

    kind: Kind
    url: URL
    headers: Mapping[str, str]
    timeout: aiohttp.ClientTimeout
    leaves: bool

    @staticmethod
    def of(url: str, kind: Kind, headers: Mapping[str, str], time_limit: float) -> _Way:
        asked = {"Content-Type": "application/json", "Accept-Encoding": "identity", **headers, **kind.headers}
        # Whoever leaves after a time does so by the same means as whoever has waited long enough.
        leave_after = kind.leave_after_seconds or math.inf
        timeout = aiohttp.ClientTimeout(total=min(time_limit, leave_after))
        return _Way(kind, URL(url.rstrip("/") + kind.path), asked, timeout, leave_after < time_limit)


class _Client:
    def __init__(self, session: aiohttp.ClientSession, ways: Mapping[str, _Way]) -> None:
        self._session = session
        self._ways = ways
        self._began = 0.0

    async def run(self, planned: Sequence[Planned]) -> list[Outcome]:
        self._began = time.perf_counter()
        tasks: list[asyncio.Task[Outcome]] = []
        try:
            for request in planned:
                # Not the loop's clock: uvloop's has steps of a millisecond.
                while (early := self._began + request.at - time.perf_counter()) > 0:  # noqa: ASYNC110 - the clock is what is waited for
                    await asyncio.sleep(max(0.001, early))
                tasks.append(asyncio.create_task(self._ask(request)))
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, request: Planned) -> Outcome:
        way = self._ways[request.kind.name]
        seen = Seen(time.perf_counter())
        try:
            async with self._session.post(way.url, data=request.body, headers=way.headers, timeout=way.timeout) as response:
                seen.began(time.perf_counter(), response.status, response.headers)
                if way.kind.is_stream and response.status == OK:
                    await _read_stream(response, way.kind, seen)
                else:
                    seen.judge(await response.read())
        except asyncio.TimeoutError:
            if way.leaves:
                seen.has_left = not seen.is_whole
            else:
                seen.broke("client_timeout")
        except (aiohttp.ClientError, OSError) as error:
            seen.broke(_word(error))
        return seen.outcome(request.kind, request.stage, request.at, self._began, time.perf_counter())


async def _read_stream(response: aiohttp.ClientResponse, kind: Kind, seen: Seen) -> None:
    reader = EventReader()
    try:
        while data := await response.content.readany():
            if not reader.feed(data):
                continue
            seen.text_came(time.perf_counter())
            if kind.leave_after_tokens and reader.texts >= kind.leave_after_tokens and not reader.is_done:
                seen.has_left = True
                response.close()
                return
    finally:
        seen.ended_as(reader)


def _word(error: Exception) -> str:
    """What broke; that this machine has no file descriptors left is the client's own fault, and is told apart."""
    if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL}:
        return "client_out_of_sockets"
    return "connect_failed" if isinstance(error, aiohttp.ClientConnectorError) else "connection_broken"
