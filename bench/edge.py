"""What Envoy in front costs: added latency and processor time a request, against asking the pod directly."""

from __future__ import annotations

from functools import partial

from bench.measuring import Section, closed_loop, interleaved, median
from bench.pod import CHUNKS, PATH, PER_SECOND, body
from tests.running import running_pods
from tests.stack.harness import running_edge


async def measure(rounds: int = 5) -> list[Section]:
    """JSON and streams, one client (latency) and 16 clients (processor time)."""
    section = Section(
        "Envoy in front of a pod",
        ["request", "direct p50", "through Envoy p50", "added p50", "Envoy's CPU a request", "pod's CPU a request"],
        notes=f"Fake engine. Latency with one client, processor time with 16, median of {rounds} interleaved rounds.",
    )
    for stream, pace, requests in ((False, 1e9, 600), (True, PER_SECOND, 120)):
        asked = body(stream=stream)
        with running_pods(1, fake_first_token_ms=0, fake_tokens_per_second=pace) as pods:
            async with running_edge(pods=pods.entries) as edge:
                await edge.until_healthy("engine-1")
                envoy = edge.processes["envoy"].pid
                alone = partial(closed_loop, body=asked, clients=1, requests=requests // 3, pids=[])
                results = await interleaved(rounds, direct=partial(alone, pods.url + PATH), through=partial(alone, edge.url + PATH))
                many = partial(closed_loop, edge.url + PATH, asked, clients=16, requests=requests)
                costs = await interleaved(rounds, envoy=partial(many, pids=[envoy]), pod=partial(many, pids=[pods.entries[0]["pid"]]))
        direct, through = ([result.p50_us for result in results[name]] for name in ("direct", "through"))
        added = median([with_ - without for with_, without in zip(through, direct, strict=True)])
        cpu = [f"{median([result.cpu_us for result in costs[name]]):.0f} µs" for name in ("envoy", "pod")]
        name = f"stream of {CHUNKS} chunks" if stream else "JSON"
        section.rows.append([name, f"{median(direct) / 1000:.2f} ms", f"{median(through) / 1000:.2f} ms", f"{added / 1000:.2f} ms", *cpu])
    return [section]
