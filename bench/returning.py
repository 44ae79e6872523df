"""Whether a time to return is true: a burst, after which every refused client comes back when it was told to."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

from bench.measuring import Section
from bench.mix import ANSWERS
from tests.running import running_pods
from tests.stack.harness import running_edge

if TYPE_CHECKING:
    from tests.stack.harness import RunningEdge

AIM = 0.95
SLOTS, TOKENS_PER_SECOND = 8, 75
LENGTHS = [tokens for tokens, weight in ANSWERS for _ in range(weight)]
# Load as a multiple of the capacity, and for how many seconds.
PHASES = ((0.5, 5.0), (5.0, 10.0), (0.8, 40.0))
_MAX_TRIES = 20
_PATH = "/v1/chat/completions"


@dataclass
class Told:
    """What clients were told, and what came of it."""

    num_first: int = 0
    num_refused: int = 0
    num_returns: int = 0
    num_accepted: int = 0
    waits: list[float] = field(default_factory=list)


async def _client(edge: RunningEdge, number: int, tokens: int, told: Told, *, exact: bool) -> None:
    """Asks, and asks the same again when it was told to, until it is answered."""
    body = {"messages": [{"role": "user", "content": f"question {number}"}], "max_tokens": tokens, "ignore_eos": True}
    data, headers = msgspec.json.encode(body), {"content-type": "application/json"}
    told.num_first += 1
    for attempt in range(_MAX_TRIES):
        async with edge.session.post(edge.url + _PATH, data=data, headers=headers) as response:
            await response.read()
        told.num_returns += attempt > 0
        if response.status == 200:
            told.num_accepted += attempt > 0
            return
        if response.status != 429:
            raise RuntimeError(f"answered {response.status}")
        told.num_refused += attempt == 0
        wait = float(response.headers["retry-after-ms"]) / 1000 if exact else float(response.headers["retry-after"])
        told.waits.append(wait)
        await asyncio.sleep(wait)


async def burst(pods: int, *, exact: bool, seed: int = 1) -> Told:
    """Five times what the pods can do for ten seconds, then less than they can; the rates are those of the fake engine."""
    chance, told, tasks = random.Random(seed), Told(), list[asyncio.Task[None]]()
    rate = pods * SLOTS / (0.02 + statistics.mean(LENGTHS) / TOKENS_PER_SECOND)
    settings: dict[str, Any] = {"max_concurrent_requests": SLOTS}
    with running_pods(pods, fake_tokens_per_second=TOKENS_PER_SECOND, fake_first_token_ms=20, **settings) as running:
        source = f"file:{running.state_dir / 'pods.json'}"
        async with running_edge(pod_source=source, address_requests_per_second=1e6, address_burst=1_000_000, **settings) as edge:
            await edge.until_healthy(*[f"engine-{number + 1}" for number in range(pods)])
            edge.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
            at = time.monotonic()
            for factor, seconds in PHASES:
                end = at + seconds
                while at < end:
                    await asyncio.sleep(max(0.0, at - time.monotonic()))
                    tasks.append(asyncio.create_task(_client(edge, len(tasks), chance.choice(LENGTHS), told, exact=exact)))
                    at += chance.expovariate(rate * factor)
            await asyncio.gather(*tasks)
            await edge.session.close()
    return told


async def measure() -> list[Section]:
    """One, two and four pods; clients that know milliseconds, as the `openai` package does, and whole seconds, as the standard does."""
    table = Section(
        "Coming back as told",
        ["pods", "the client reads", "requests", "refused at first", "accepted when they came back", "told to wait, median, longest"],
        notes=f"Fake engines of {SLOTS} slots. Five times their capacity for 10 s, then 0.8 times for 40 s; whoever is refused sends the "
        "same again after Retry-After (whole seconds) or retry-after-ms, until it is answered. Every request was answered in the end.",
    )
    for pods, exact in ((1, True), (2, True), (2, False), (4, True)):
        told = await burst(pods, exact=exact)
        share = told.num_accepted / max(1, told.num_returns)
        waits = f"{statistics.median(told.waits):.0f} s, {max(told.waits):.0f} s"
        word = f"{share:.1%} (aim ≥ {AIM:.0%}{'' if share >= AIM else ', **missed**'})"
        reads = "retry-after-ms" if exact else "Retry-After"
        table.rows.append([str(pods), reads, str(told.num_first), str(told.num_refused), word, waits])
    return [table]
