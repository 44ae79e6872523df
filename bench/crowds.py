"""What a crowd costs the others: a thousand clients that read one kilobyte a second, and a thousand connections that ask for nothing."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import statistics
from typing import TYPE_CHECKING

import msgspec

from bench.measuring import Section, verdict
from services.ops.load.arrivals import poisson
from services.ops.load.client import run_load
from services.ops.load.kinds import chat
from services.ops.load.summary import percentile
from tests.running import running_pods
from tests.stack.harness import running_edge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.stack.harness import RunningEdge

AIM = 1.2
CROWD, ROUNDS, SECONDS, RATE = 1000, 3, 8.0, 40.0
_READ_BYTES = 1024
# About 200 KB of events, of which a minute takes 60.
_LONG = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 1000, "ignore_eos": True}
# A client that reads slowly does not let its kernel read for it.
_RECEIVE_BYTES = 4096


async def _connect(edge: RunningEdge) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", edge.port))
    return await asyncio.open_connection(sock=sock, limit=_READ_BYTES)


async def _read_slowly(edge: RunningEdge, all_begun: asyncio.Semaphore) -> None:
    """A stream, of which a kilobyte is read each second, for ever."""
    reader, writer = await _connect(edge)
    body = msgspec.json.encode(_LONG)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: convoy\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    try:
        writer.write(head.encode() + body)
        if not (await reader.read(_READ_BYTES)).startswith(b"HTTP/1.1 200"):
            raise RuntimeError("a slow reader was not answered")
        all_begun.release()
        while await reader.read(_READ_BYTES):  # noqa: ASYNC110 - a slow reader is what this is
            await asyncio.sleep(1)
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def _crowd(edge: RunningEdge, *, readers: int, idle: int) -> AsyncIterator[None]:
    """So many of each, while it is entered."""
    begun, tasks = asyncio.Semaphore(0), list[asyncio.Task[None]]()
    connections = [await _connect(edge) for _ in range(idle)]
    try:
        for _ in range(readers):
            tasks.append(asyncio.create_task(_read_slowly(edge, begun)))
            await asyncio.sleep(0.005)
        for _ in range(readers):
            await asyncio.wait_for(begun.acquire(), 60)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _, writer in connections:
            writer.close()


async def _p95(edge: RunningEdge, seed: int) -> float:
    outcomes = await run_load(edge.url, [chat(max_tokens=8), chat(is_stream=True, max_tokens=8)], [poisson(RATE, SECONDS)], seed=seed)
    if not all(outcome.is_whole for outcome in outcomes):
        raise RuntimeError(f"not all were answered: { {outcome.result for outcome in outcomes} }")
    return percentile(sorted(outcome.latency for outcome in outcomes), 0.95)


async def measure() -> list[Section]:
    """Each crowd beside nobody, in turn."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536), most))
    section = Section(
        "Beside a crowd",
        ["crowd", "the others' p95 alone", "beside it", "ratio"],
        notes=f"Two fake pods behind Envoy; the others send {RATE:g} requests/s, JSON and streams of 8 tokens, for {SECONDS:g} s; {ROUNDS} "
        f"rounds, medians. Slow readers have a stream of 1000 tokens each and read {_READ_BYTES} bytes a second. The crowd's own client "
        "runs on the same cores.",
    )
    settings = {"max_concurrent_requests": 1200, "fake_tokens_per_second": 400}
    with running_pods(2, **settings) as pods:
        async with running_edge(pod_source=f"file:{pods.state_dir / 'pods.json'}", max_concurrent_requests=1200) as edge:
            await edge.until_healthy("engine-1", "engine-2")
            await _p95(edge, 0)
            for name, crowd in (
                (f"{CROWD} slow readers", {"readers": CROWD, "idle": 0}),
                (f"{CROWD} idle connections", {"readers": 0, "idle": CROWD}),
            ):
                alone, beside = [], []
                for number in range(ROUNDS):
                    alone.append(await _p95(edge, number))
                    async with _crowd(edge, **crowd):
                        await asyncio.sleep(4)  # until their answers have been made: it is their reading that is measured
                        beside.append(await _p95(edge, number))
                ratios = [one / other for one, other in zip(beside, alone, strict=True)]
                cells = [f"{statistics.median(values) * 1000:.1f} ms" for values in (alone, beside)]
                section.rows.append([name, *cells, verdict(statistics.median(ratios), AIM, at_most=True)])
    return [section]
