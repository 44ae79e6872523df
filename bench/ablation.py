"""What each part of the filter chain costs Envoy: the whole chain beside chains that lack one part."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.chain import PATH, SETTINGS, bare, body, envoy, known
from bench.measuring import Section, closed_loop, interleaved, python_process
from bench.tracing import sink
from services.edge.rendering import connection_manager
from tests.stack.harness import running_edge
from tests.stack.knowing import bearer

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.measuring import Round
    from services.edge.files import Json

REQUESTS = 500
FILTERS = {
    "keys": "keys",
    "limit_client": "limit_client",
    "limit_address": "limit_address",
    "request.lua": "envoy.filters.http.lua",
    "body size": "envoy.filters.http.body_size_limit",
}
OPTIONS = {
    "tracing": ("tracing",),
    "access log": ("access_log",),
    "early headers, request ids": ("early_header_mutation_extensions", "request_id_extension"),
}


def without_filter(name: str, config: Json) -> None:
    """Takes one HTTP filter out."""
    manager = connection_manager(config)
    manager["http_filters"] = [one for one in manager["http_filters"] if one["name"] != name]


def without_options(names: tuple[str, ...], config: Json) -> None:
    """Takes options of the connection manager out."""
    manager = connection_manager(config)
    for name in names:
        del manager[name]


def router_only(config: Json) -> None:
    """Leaves the router, the routes and the answers to errors."""
    without_options(("tracing", "access_log", *OPTIONS["early headers, request ids"]), config)
    manager = connection_manager(config)
    manager["http_filters"] = manager["http_filters"][-1:]


def variants(port: int) -> dict[str, Callable[[Json], None] | None]:
    """How the bootstrap of each contestant differs from Convoy's; `port` is the pod's."""
    return {
        "nothing": None,
        **{name: partial(without_filter, filter_name) for name, filter_name in FILTERS.items()},
        **{name: partial(without_options, options) for name, options in OPTIONS.items()},
        "all of these": router_only,
        "routes and answers to errors, too": partial(bare, port),
    }


async def measure(rounds: int = 15) -> list[Section]:
    """One Envoy for each variant, on what one edge has written."""
    async with sink() as collector, contextlib.AsyncExitStack() as stack:
        _, port = stack.enter_context(python_process("-m", "bench.upstream", ready="serving "))
        pod = {"name": "engine-1", "host": "127.0.0.1", "port": int(port), "pid": 0, "started_at": 0.0}
        settings: dict[str, Any] = {"otel_exporter_otlp_endpoint": collector, **SETTINGS}
        edge = await stack.enter_async_context(running_edge([pod], clients=known(10), **settings))
        loads: dict[str, Any] = {}
        for name, change in variants(int(port)).items():
            pid, url = await stack.enter_async_context(envoy(edge, change))
            asked: dict[str, Any] = {"clients": 16, "requests": REQUESTS, "pids": [pid], "headers": bearer("client-0")}
            loads[name] = partial(closed_loop, url + PATH, body(2048), **asked)
        await interleaved(1, **loads)  # warm-up
        return [table(await interleaved(rounds, **loads), rounds)]


def table(results: dict[str, list[Round]], rounds: int) -> Section:
    """What is saved by leaving each part out, against the whole chain."""
    section = Section(
        "What each part of Convoy's chain costs",
        ["left out", "Envoy's CPU a request", "saved", "÷ whole"],
        notes=f"The whole chain as above, and chains that lack one part of it: JSON of 2 KB, 16 clients, the least of {rounds} interleaved "
        "rounds; on a shared machine ten microseconds are noise. Without `keys` nobody has a class, so `limit_client` has less to do, "
        "too. The last row is the bare Envoy.",
    )
    least = {name: min(result.cpu_us for result in measured) for name, measured in results.items()}
    whole = least["nothing"]
    for name, cpu in least.items():
        section.rows.append([name, f"{cpu:.0f} µs", f"{whole - cpu:.0f} µs", f"{cpu / whole:.2f}×"])
    return section
