"""What limits and clients cost those who keep to them: a flood beside, retries at the limit, a clients file of 5000."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import time
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import openai

from bench.chain import LIMITS, PATH, SETTINGS, body
from bench.measuring import Section, closed_loop, interleaved, median, python_process, ratio, verdict
from tests.stack.harness import running_edge
from tests.stack.knowing import bearer, clients_file, key_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import aiohttp

    from tests.stack.harness import RunningEdge

RATE = 5
"""Requests a second of the class that the flood and the workers are in."""
FLOOD = 50 * RATE
CALM_REQUESTS, CALM_SECONDS = 200, 4.0
FLOOD_AIM = 1.2
WORKERS, WORK_SECONDS, BURSTS, COPIES = 4, 40.0, (5, 30), 2
HELD_AIM_PERCENT = 2.0
MANY, FEW, RELOADS = 5000, 5, 9
RELOAD_AIM_SECONDS = 1.0


async def measure(rounds: int = 7) -> list[Section]:
    """Each part with an edge of its own, in front of one pod that answers at once."""
    return [await fairness(rounds), await retries(), await reloads(), await crowds(rounds)]


@contextlib.asynccontextmanager
async def limited(clients: str) -> AsyncIterator[RunningEdge]:
    """An edge that knows these clients, in front of the lightest pod."""
    with python_process("-m", "bench.upstream", ready="serving ") as (_, port):
        pod = {"name": "engine-1", "host": "127.0.0.1", "port": int(port), "pid": 0, "started_at": 0.0}
        settings: dict[str, Any] = SETTINGS
        async with running_edge([pod], clients=clients, **settings) as edge:
            await edge.until_healthy("engine-1")
            yield edge


async def fairness(rounds: int) -> Section:
    """A client within its limit, with another's flood and without."""
    section = Section(
        "A client beside another one's flood",
        ["the other client", "p50", "p95", "p95 ÷ alone", "the other one got, a second"],
        notes=f"One client asks {CALM_REQUESTS / CALM_SECONDS:.0f} times a second, one request after the other, of a pod that answers at "
        f"once; the other, in a process of its own, {FLOOD} times, fifty times its limit of {RATE}. Median of {rounds} interleaved rounds "
        f"of {CALM_SECONDS:.0f} s. With a real engine behind, the same delay is a smaller part of the answer's time.",
    )
    classes = f"{LIMITS}\nfew: {{requests_per_minute: {RATE * 60}, burst: {RATE}}}"
    alone: list[list[float]] = []
    beside: list[list[float]] = []
    got: list[float] = []
    async with limited(clients_file({"client-0": "", "flood": "class: few"}, classes)) as edge:
        await _calm(edge)  # warm-up
        for _ in range(rounds):
            alone.append(await _calm(edge))
            with python_process("-m", "bench.flood", edge.url + PATH, "flood", str(FLOOD), ready="flooding"):
                await asyncio.sleep(1)  # its burst is used up
                before, begun = await _passed(edge), time.monotonic()
                beside.append(await _calm(edge))
                got.append((await _passed(edge) - before - CALM_REQUESTS) / (time.monotonic() - begun))
    for name, told in (("does not ask", alone), ("floods", beside)):
        p50, p95 = (median([_share(times, share) for times in told]) * 1000 for share in (0.5, 0.95))
        cost = ratio([_share(times, 0.95) for times in told], [_share(times, 0.95) for times in alone])
        is_flood = told is beside
        shown = [verdict(cost, FLOOD_AIM, at_most=True), f"{median(got):.2f}"] if is_flood else ["", ""]
        section.rows.append([name, f"{p50:.2f} ms", f"{p95:.2f} ms", *shown])
    return section


async def _calm(edge: RunningEdge) -> list[float]:
    """How long each request took, in seconds, of a client that keeps to a pace."""
    times, loop = [], asyncio.get_running_loop()
    begun = loop.time()
    for number in range(CALM_REQUESTS):
        await asyncio.sleep(begun + number * CALM_SECONDS / CALM_REQUESTS - loop.time())
        start = time.perf_counter()
        await _ask(edge.session, edge.url + PATH, bearer("client-0"))
        times.append(time.perf_counter() - start)
    return times


async def _ask(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> int:
    async with session.post(url, json={}, headers=headers) as response:
        await response.read()
        return response.status


async def _passed(edge: RunningEdge) -> int:
    """How many requests the limit of clients has let through."""
    name = "limit_client.http_local_rate_limit.ok"
    return int((await edge.stats(f"^{name}$"))[name])


def _share(times: list[float], share: float) -> float:
    return sorted(times)[int(len(times) * share)]


async def retries() -> Section:
    """Workers of the `openai` package that send as fast as they are served, and are told when to come again."""
    section = Section(
        "The openai package at its limit",
        ["burst", "served", "errors", "a second", "beside the limit"],
        notes=f"{WORKERS} workers of the package with `max_retries=5` send as fast as they are served, {WORK_SECONDS:.0f} s long, against "
        f"{RATE} requests a second; {COPIES} clients for each burst, all at once. A second: the slope of a straight line through what was "
        f"served after the burst. Retry-After has whole seconds, so a bucket that holds one second's requests is full before the workers "
        "come again, and what flows over is lost to them.",
    )
    classes = "\n".join(f"b{burst}: {{requests_per_minute: {RATE * 60}, burst: {burst}}}" for burst in BURSTS)
    names = {f"client-{burst}-{copy}": burst for burst in BURSTS for copy in range(COPIES)}
    async with limited(clients_file({name: f"class: b{burst}" for name, burst in names.items()}, classes)) as edge:
        results = await asyncio.gather(*(_work(edge, name) for name in names))
    for burst, (served, errors) in zip(names.values(), results, strict=True):
        later = served[burst:]
        rate = statistics.linear_regression(later, range(len(later))).slope
        percent = (rate / RATE - 1) * 100
        missed = "" if abs(percent) <= HELD_AIM_PERCENT and not errors else ", **missed**"
        shown = f"{percent:+.1f} % (aim within {HELD_AIM_PERCENT:.0f} %, no error{missed})"
        section.rows.append([str(burst), str(len(served)), str(errors), f"{rate:.2f}", shown])
    return section


async def _work(edge: RunningEdge, name: str) -> tuple[list[float], int]:
    """When each request was served, in order, and how many were given up."""
    begun = time.monotonic()
    served: list[float] = []
    errors = 0

    async def worker() -> None:
        nonlocal errors
        async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=key_of(name), max_retries=5) as client:
            while time.monotonic() < begun + WORK_SECONDS:
                try:
                    await client.chat.completions.with_raw_response.create(model="demo", messages=[{"role": "user", "content": "hi"}])
                except openai.APIError:  # noqa: PERF203 - each is counted
                    errors += 1
                else:
                    served.append(time.monotonic() - begun)

    await asyncio.gather(*(worker() for _ in range(WORKERS)))
    return sorted(served), errors


def crowd(number: int, *more: str) -> str:
    """A clients file of so many clients, and those named."""
    return clients_file(dict.fromkeys([*(f"client-{index}" for index in range(number)), *more], ""), LIMITS)


async def reloads() -> Section:
    """From the rename of the clients file to the first request that a new key is accepted with."""
    section = Section(
        "A clients file that changes",
        ["clients", "a new key is accepted after, median", "worst"],
        notes=f"The file is renamed into its place with one client more, whose key is then tried every 2 ms; {RELOADS} times.",
    )
    for number in (FEW, MANY):
        async with limited(crowd(number)) as edge:
            found = [await _until_accepted(edge, number, f"new-{turn}") for turn in range(RELOADS)]
        worst = max(found)
        missed = "" if worst <= RELOAD_AIM_SECONDS else ", **missed**"
        section.rows.append([str(number), f"{median(found):.2f} s", f"{worst:.2f} s (aim ≤ {RELOAD_AIM_SECONDS:.0f} s{missed})"])
    return section


async def _until_accepted(edge: RunningEdge, number: int, name: str) -> float:
    text = crowd(number, name)
    edge.write_clients(text)
    begun = time.perf_counter()
    while await _ask(edge.session, edge.url + PATH, bearer(name)) != HTTPStatus.OK:  # noqa: ASYNC110 - what is waited for is Envoy
        await asyncio.sleep(0.002)
    found = time.perf_counter() - begun
    await edge.until_applied(edge.clients_file)
    return found


async def crowds(rounds: int) -> Section:
    """Processor time a request by how many clients there are, and how many of them ask."""
    section = Section(
        "What many clients cost a request",
        ["clients", "who asks", "Envoy's CPU a request", "÷ few"],
        notes=f"JSON of 2 KB, 16 at a time, the least of {2 * rounds} interleaved rounds. Where all ask in turn, most keys are new to "
        "Envoy: they are hashed, and their buckets made.",
    )
    async with limited(crowd(FEW)) as few, limited(crowd(MANY)) as many:
        turns = itertools.cycle([bearer(f"client-{index}") for index in range(MANY)])
        asked: dict[str, Any] = {"body": body(2048), "clients": 16}

        def load(edge: RunningEdge, headers: Any, requests: int) -> Any:
            return partial(closed_loop, edge.url + PATH, **asked, requests=requests, headers=headers, pids=[edge.processes["envoy"].pid])

        one = bearer("client-0")
        contestants = {"few": load(few, one, 500), "many": load(many, one, 500), "turns": load(many, turns, 500)}
        await interleaved(1, **contestants)  # warm-up
        results = await interleaved(2 * rounds, **contestants)
    costs = {name: min(result.cpu_us for result in measured) for name, measured in results.items()}
    for name, clients, who in (("few", FEW, "one"), ("many", MANY, "one"), ("turns", MANY, "all in turn")):
        section.rows.append([str(clients), who, f"{costs[name]:.0f} µs", f"{costs[name] / costs['few']:.2f}×"])
    return section
