"""What the load client costs: its own processor time a request, and how late it is, beside a plain aiohttp request."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import uvloop

from bench.measuring import Section, ask, python_process
from bench.pod import CHUNKS, PATH, PER_SECOND, body
from services.ops.load.arrivals import poisson
from services.ops.load.client import run_load
from services.ops.load.kinds import chat
from services.ops.load.summary import figures
from tests.running import running_pods

if TYPE_CHECKING:
    from collections.abc import Coroutine

SECONDS = 10.0
RATES = {"JSON": 500.0, f"stream of {CHUNKS} chunks": 100.0}


async def measure(seconds: float = SECONDS) -> list[Section]:
    """JSON and streams, against a server that sends bytes made before."""
    section = Section(
        "The load client",
        ["requests", "rate", "plain aiohttp, CPU a request", "load client, CPU a request", "of a core", "late by, p99", "not answered"],
        notes=f"Open loop, Poisson, {seconds:g} s, uvloop, on a server that sends bytes made before. The plain client reads the same "
        "answers and looks at nothing; it asks one after the other, so each chunk of a stream wakes it. How late the load client is, is "
        "part of each latency that it tells.",
    )
    for is_stream, (name, rate) in zip((False, True), RATES.items(), strict=True):
        with tempfile.TemporaryDirectory() as folder:
            payload = Path(folder) / "answer"
            with running_pods(1, fake_first_token_ms=0, fake_tokens_per_second=PER_SECOND) as pods:
                async with aiohttp.ClientSession() as session, session.post(pods.url + PATH, json=body(stream=is_stream)) as response:
                    payload.write_bytes(await response.read())
            with python_process("-m", "bench.bare", str(payload), str(CHUNKS * is_stream), str(PER_SECOND), ready="serving ") as (_, url):
                plain, _ = await asyncio.to_thread(_costs, _plain(url, is_stream=is_stream, requests=200))
                stages = [poisson(rate, seconds)]
                cost, outcomes = await asyncio.to_thread(_costs, run_load(url, [chat(is_stream=is_stream)], stages))
        found = figures(outcomes, name, seconds)
        section.rows.append(
            [
                name,
                f"{rate:g}/s",
                f"{plain / 200 * 1e6:.0f} µs",
                f"{cost / len(outcomes) * 1e6:.0f} µs",
                f"{cost / seconds * 100:.0f} %",
                f"{(found.lag_p99 or 0) * 1000:.1f} ms",
                str(found.requests - sum(outcome.is_whole for outcome in outcomes)),
            ]
        )
    return [section]


def _costs(work: Coroutine[Any, Any, Any]) -> tuple[float, Any]:
    """Processor seconds of some work in a thread and loop of its own, and its result."""
    before = time.thread_time()
    result = uvloop.run(work)
    return time.thread_time() - before, result


async def _plain(url: str, *, is_stream: bool, requests: int) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(requests):
            await ask(session, url + PATH, body(stream=is_stream))
