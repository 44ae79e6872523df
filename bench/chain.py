"""What Convoy's filter chain costs Envoy: the whole chain beside an Envoy that only routes, in front of one pod that computes nothing."""

from __future__ import annotations

import asyncio
import contextlib
from copy import deepcopy
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
import yaml

from bench.measuring import Section, closed_loop, interleaved, python_process, verdict
from bench.tracing import sink
from bench.upstream import CHUNKS
from services.edge.rendering import connection_manager
from services.envoy_binary import envoy_binary
from tests.stack.harness import free_ports, running_edge, until
from tests.stack.knowing import bearer, clients_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from bench.measuring import Round
    from services.edge.files import Json
    from tests.stack.harness import RunningEdge

CPU_AIM = 1.35
P50_AIM_MS = 0.15
PATH = "/v1/chat/completions"
BODIES = {"JSON, 0.5 KB": 512, "JSON, 2 KB": 2048, "JSON, 32 KB": 32768}
STREAM = f"stream of {CHUNKS} chunks"
LIMITS = "standard: {requests_per_minute: 6000000, burst: 6000000}"
SETTINGS = {"trace_sample_percent": 1, "address_requests_per_second": 1_000_000, "address_burst": 1_000_000}


def bare(port: int, config: Json) -> None:
    """Makes Convoy's bootstrap one of the same listener that only routes to one pod."""
    del config["dynamic_resources"]
    manager = connection_manager(config)
    for name in ("rds", "tracing", "access_log", "local_reply_config", "early_header_mutation_extensions", "request_id_extension"):
        del manager[name]
    hosts = [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "engine", "timeout": "0s"}}]}]
    manager["route_config"] = {"name": "all", "virtual_hosts": hosts}
    manager["http_filters"] = manager["http_filters"][-1:]
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    endpoints = {"cluster_name": "engine", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}
    config["static_resources"]["clusters"] = [{"name": "engine", "type": "STATIC", "load_assignment": endpoints}]


@contextlib.asynccontextmanager
async def envoy(edge: RunningEdge, change: Callable[[Json], None] | None = None) -> AsyncIterator[tuple[int, str]]:
    """One more Envoy on what this edge has written, its bootstrap changed; its pid and URL, when it serves.

    Logs are flushed as on a laptop, not as often as tests want it.
    """
    config = deepcopy(yaml.safe_load((edge.state_dir / "envoy.yaml").read_text()))
    port, admin_port = free_ports(2)
    config["admin"]["address"]["socket_address"]["port_value"] = admin_port
    config["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"] = port
    if change:
        change(config)
    path = edge.state_dir / f"variant-{port}.yaml"
    path.write_text(yaml.safe_dump(config))
    words = ["-c", str(path), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warn", "--file-flush-interval-msec", "1000"]
    with path.with_suffix(".log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(envoy_binary(), *words, stdout=log, stderr=log)
    try:
        await _until_serving(f"http://127.0.0.1:{port}{PATH}", path.with_suffix(".log").read_text)
        yield process.pid, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def _until_serving(url: str, log: Callable[[], str]) -> None:
    """Waits until a request with the key of the first client is answered by the pod."""
    async with aiohttp.ClientSession() as session:

        async def serving() -> bool:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with session.post(url, json={}, headers=bearer("client-0")) as response:
                    return response.status == HTTPStatus.OK
            return False

        await until(serving, log)


def known(number: int) -> str:
    """A clients file of so many clients."""
    return clients_file({f"client-{index}": "" for index in range(number)}, LIMITS)


def body(size: int) -> dict[str, Any]:
    """A request whose JSON has `size` bytes."""
    asked = {"model": "demo", "max_tokens": 64, "stream": size == 0, "messages": [{"role": "user", "content": ""}]}
    text = "Tell me about distributed systems. "
    missing = max(size, 512) - len(str(asked))
    asked["messages"] = [{"role": "user", "content": (text * (missing // len(text) + 1))[:missing]}]
    return asked


async def compare(
    envoys: Mapping[str, tuple[int, str]], asked: dict[str, Any], rounds: int, requests: int
) -> dict[str, tuple[float, float]]:
    """Of each Envoy the processor time a request (16 clients) and the median latency (one client): the least of all rounds, in µs."""
    load = partial(closed_loop, body=asked, headers=bearer("client-0"))
    many = {name: partial(load, url + PATH, clients=16, requests=requests, pids=[pid]) for name, (pid, url) in envoys.items()}
    one = {name: partial(load, url + PATH, clients=1, requests=max(8, requests // 6), pids=[]) for name, (_, url) in envoys.items()}
    await interleaved(1, **many)  # warm-up
    costs, times = await interleaved(rounds, **many), await interleaved(rounds, **one)
    return {name: (_least(costs[name], "cpu_us"), _least(times[name], "p50_us")) for name in envoys}


def _least(results: list[Round], what: str) -> float:
    return min(float(getattr(result, what)) for result in results)


@contextlib.asynccontextmanager
async def contestants() -> AsyncIterator[dict[str, tuple[int, str]]]:
    """The bare Envoy and three of Convoy's, that differ in whom they know."""
    async with sink() as collector, contextlib.AsyncExitStack() as stack:
        _, port = stack.enter_context(python_process("-m", "bench.upstream", ready="serving "))
        pod = {"name": "engine-1", "host": "127.0.0.1", "port": int(port), "pid": 0, "started_at": 0.0}
        found: dict[str, tuple[int, str]] = {}
        for name, clients in (("10 clients", known(10)), ("5000 clients", known(5000)), ("no clients file", "")):
            settings: dict[str, Any] = {"otel_exporter_otlp_endpoint": collector, **SETTINGS}
            edge = await stack.enter_async_context(running_edge([pod], clients=clients, **settings))
            if not found:
                found["bare"] = await stack.enter_async_context(envoy(edge, partial(bare, int(port))))
            found[name] = await stack.enter_async_context(envoy(edge))
        yield found


async def measure(rounds: int = 7) -> list[Section]:
    """JSON of three sizes, and a stream."""
    section = Section(
        "Convoy's chain beside a bare Envoy",
        ["request", "bare, CPU a request", "whole chain", "chain ÷ bare", "5000 clients", "no clients file", "added p50"],
        notes="Envoy that only routes, and Envoy with all of `envoy/` (keys, limits, Lua, access log, "
        f"{SETTINGS['trace_sample_percent']} % traced), each on one thread, in front of one pod that sends fixed bytes. Processor time "
        f"with 16 clients, latency with one; the least of {rounds} interleaved rounds. The chain knows 10 clients. The aims are for 2 KB.",
    )
    async with contestants() as envoys:
        for name, size in {**BODIES, STREAM: 0}.items():
            found = await compare(envoys, body(size), rounds, 800 if size else 96)
            base, chain = found["bare"], found["10 clients"]
            is_aim = size == 2048
            shown = verdict(chain[0] / base[0], CPU_AIM, at_most=True) if is_aim else f"{chain[0] / base[0]:.2f}×"
            others = [f"{found[other][0] / base[0]:.2f}×" for other in ("5000 clients", "no clients file")]
            added = (chain[1] - base[1]) / 1000
            aim = f" (aim ≤ {P50_AIM_MS}{'' if added <= P50_AIM_MS else ', **missed**'})" if is_aim else ""
            section.rows.append([name, f"{base[0]:.0f} µs", f"{chain[0]:.0f} µs", shown, *others, f"{added:.2f} ms{aim}"])
    return [section]
