"""What tracing costs: the pod's processor time a request at 100 %, and Envoy's at several shares of sampled requests."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import web

from bench.engine import messages
from bench.measuring import Section, closed_loop, interleaved, median, ratio, verdict
from bench.pod import PATH, body
from tests.running import running_pods
from tests.stack.harness import running_edge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

POD_AIM = 1.05
TOKENS = 64
PERCENTS = (0, 1, 10, 100)


@contextlib.asynccontextmanager
async def sink() -> AsyncIterator[str]:
    """Takes spans and metrics and forgets them; its address."""

    async def take(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(content_type="application/x-protobuf")

    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/{signal}", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def measure(rounds: int = 5) -> list[Section]:
    """Pods of both engines, then Envoy."""
    return [await pods(rounds), await envoy(rounds)]


async def pods(rounds: int) -> Section:
    """With spans sent to a collector against without."""
    section = Section(
        "Tracing in a pod",
        ["engine", "CPU a request, not traced", "all traced", "traced ÷ not"],
        notes=f"JSON answers of {TOKENS} tokens, 8 clients, median of {rounds} interleaved rounds; every request is traced, its spans and "
        "metrics are sent. The fake engine computes nothing: its row is what tracing costs, beside nearly nothing else.",
    )
    for engine, requests, settings in (
        ("transformers", 48, {"dtype": "float32", "num_threads": 1}),
        ("fake", 800, {"fake_first_token_ms": 0, "fake_tokens_per_second": 1e9}),
    ):
        asked: dict[str, Any] = {"messages": messages(0), "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0.7}
        async with sink() as collector:
            with (
                running_pods(1, engine=engine, **settings) as plain,
                running_pods(1, engine=engine, otel_exporter_otlp_endpoint=collector, **settings) as traced,
            ):
                load = partial(closed_loop, body=asked, clients=8, requests=requests)
                contestants = {
                    name: partial(load, pods.url + PATH, pids=[pods.entries[0]["pid"]])
                    for name, pods in (("plain", plain), ("traced", traced))
                }
                await interleaved(1, **contestants)  # warm-up
                results = await interleaved(rounds, **contestants)
        plain_us, traced_us = ([result.cpu_us for result in results[name]] for name in ("plain", "traced"))
        cost = ratio(traced_us, plain_us)
        shown = verdict(cost, POD_AIM, at_most=True) if engine == "transformers" else f"{cost:.2f}×"
        section.rows.append([engine, f"{median(plain_us):.0f} µs", f"{median(traced_us):.0f} µs", shown])
    return section


async def envoy(rounds: int) -> Section:
    """One Envoy for each share, in front of one pod that does not trace."""
    section = Section(
        "Tracing in Envoy",
        ["TRACE_SAMPLE_PERCENT", "CPU a request", "÷ none traced"],
        notes=f"JSON answers of a fake pod, 16 clients, median of {rounds} interleaved rounds; two spans for each request that is traced. "
        "Advice: 100 on a laptop and up to some hundred requests a second; above that, lower the share until Envoy's processor time is no "
        "concern. Counters and quantiles come from `llm_*` and Envoy's statistics, which count every request whatever the share.",
    )
    costs: dict[str, Any] = {}
    with running_pods(1, fake_first_token_ms=0, fake_tokens_per_second=1e9) as pods:
        async with sink() as collector, contextlib.AsyncExitStack() as stack:
            for percent in PERCENTS:
                traced: dict[str, Any] = {"otel_exporter_otlp_endpoint": collector, "trace_sample_percent": percent}
                edge = await stack.enter_async_context(running_edge(pods=pods.entries, **traced))
                await edge.until_healthy("engine-1")
                load = partial(closed_loop, edge.url + PATH, body(stream=False), clients=16, requests=800)
                costs[str(percent)] = partial(load, pids=[edge.processes["envoy"].pid])
            await interleaved(1, **costs)  # warm-up
            results = await interleaved(rounds, **costs)
    none = [result.cpu_us for result in results["0"]]
    for name, measured in results.items():
        cpu = [result.cpu_us for result in measured]
        section.rows.append([f"{name} %", f"{median(cpu):.0f} µs", f"{ratio(cpu, none):.2f}×"])
    return section
