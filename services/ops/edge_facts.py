"""What Envoy's files and its admin interface say of the edge, as plain facts. Pure; nothing secret comes out: no key, no hash, no token."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from services.clients.declared import unix_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.clients.declared import ClientsFile
    from services.ops.edge_told import EdgeTold

Json = dict[str, Any]

STATS = (
    r"^(cluster\.engine\.(circuit_breakers\.default\..*|outlier_detection\.ejections_(active|enforced_total)"
    r"|upstream_rq_(retry.*|429|active|pending_active|pending_overflow)|upstream_cx_(active|overflow))"
    r"|limit_(client|address)\.http_local_rate_limit\.(ok|rate_limited))$"
)
"""Envoy's statistics that are asked for."""

_CIRCUITS = {
    "connections": ("cx", "cx"),
    "requests": ("rq", "rq"),
    "pending": ("rq_pending", "pending"),
    "retries": ("rq_retry", "retries"),
}
_OPEN_PATHS = re.compile(r"/\(?(health|docs|openapi)")


class Route(Struct, frozen=True):
    """A path of the allow-list. `answer`: stream, JSON, or the status with which Envoy answers itself."""

    name: str
    path: str
    method: str
    answer: str
    cluster: str
    limits: str
    who: str


class ClientFact(Struct, frozen=True):
    """A client, without its keys. `expires`: never, a moment, or that it has expired."""

    name: str
    role: str
    limit_class: str
    requests_per_minute: int
    burst: int
    num_keys: int
    num_expired_keys: int
    expires: str


class PodFact(Struct, frozen=True):
    """A pod: `state` is its own word to the edge, `envoy` what Envoy makes of it."""

    name: str
    address: str
    state: str
    envoy: str
    active: int
    requests: int
    errors: int


class Circuit(Struct, frozen=True):
    """A circuit breaker of the pool. `remaining` is None where Envoy does not count it."""

    name: str
    is_open: bool
    remaining: int | None


def routes(response: Json | None, *, has_clients: bool) -> list[Route]:
    """The table of routes in the order in which they are tried, a row for each path."""
    found: list[Route] = []
    ops_only = "(?!)"
    for route in ((response or {}).get("resources") or [{"virtual_hosts": [{"routes": []}]}])[0]["virtual_hosts"][0]["routes"]:
        headers = {header["name"]: header for header in route["match"].get("headers", [])}
        if headers.get("x-client-role", {}).get("invert_match"):
            ops_only = route["match"]["safe_regex"]["regex"]
        for path in _paths(route["match"]):
            who = "ops" if re.fullmatch(ops_only, path) else "who has a key"
            if not has_clients or _OPEN_PATHS.match(path):
                who = "all"
            found.append(_route(route, path, headers, who))
    return found


def clients(file: ClientsFile | None, now: float) -> list[ClientFact]:
    """Each client as the file says."""
    if file is None:
        return []
    classes = file.classes()
    found = []
    for client in file.clients:
        limits, keys = classes[client.limit_class], client.all_keys()
        expired = sum(key.expires is not None and unix_seconds(key.expires) <= now for key in keys)
        is_over = client.expires is not None and unix_seconds(client.expires) <= now
        expires = f"expired {client.expires}" if is_over else client.expires or "never"
        told = (client.limit_class, limits.requests_per_minute, limits.burst, len(keys), expired, expires)
        found.append(ClientFact(client.name, client.role, *told))
    return found


def pods(told: EdgeTold, clusters: Json | None) -> list[PodFact]:
    """The pods that the edge knows, and those that only Envoy still knows."""
    known = {f"{pod.host}:{pod.port}": pod for pod in told.pods}
    hosts = {_address(host): host for host in _hosts(clusters)}
    found = []
    for address in [*known, *(address for address in hosts if address not in known)]:
        host, pod = hosts.get(address), known.get(address)
        stats = {stat["name"]: int(stat.get("value", 0)) for stat in (host or {}).get("stats", [])}
        counts = (stats.get("rq_active", 0), stats.get("rq_total", 0), stats.get("rq_error", 0))
        name = pod.name if pod else str((host or {}).get("hostname", ""))
        found.append(PodFact(name, address, pod.state if pod else "unlisted", _health(host, is_silent=clusters is None), *counts))
    return found


def circuits(stats: Mapping[str, int]) -> list[Circuit]:
    """The pool's breakers."""
    prefix = "cluster.engine.circuit_breakers.default"
    return [
        Circuit(name, bool(stats[f"{prefix}.{opened}_open"]), stats.get(f"{prefix}.remaining_{left}"))
        for name, (opened, left) in _CIRCUITS.items()
        if f"{prefix}.{opened}_open" in stats
    ]


def counts(stats: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Counters since Envoy's start by what they are about, under names for people."""
    names = {
        "retries": {
            "tried again": "cluster.engine.upstream_rq_retry",
            "answered well then": "cluster.engine.upstream_rq_retry_success",
            "failed again": "cluster.engine.upstream_rq_retry_limit_exceeded",
            "refused by the breaker": "cluster.engine.upstream_rq_retry_overflow",
        },
        "answers 429": {
            "limit of a client": "limit_client.http_local_rate_limit.rate_limited",
            "limit of an address": "limit_address.http_local_rate_limit.rate_limited",
            "pods": "cluster.engine.upstream_rq_429",
            "breaker": "cluster.engine.upstream_rq_pending_overflow",
        },
        "ejections": {
            "now": "cluster.engine.outlier_detection.ejections_active",
            "since Envoy's start": "cluster.engine.outlier_detection.ejections_enforced_total",
        },
    }
    return {group: {name: stats.get(stat, 0) for name, stat in members.items()} for group, members in names.items()} if stats else {}


def _route(route: Json, path: str, headers: Mapping[str, Json], who: str) -> Route:
    method = headers.get(":method", {}).get("string_match", {}).get("exact", "")
    if "direct_response" in route:
        status = route["direct_response"]["status"]
        return Route(route["name"], path, method, str(status), "", "", "but ops" if "x-client-role" in headers else "all")
    action = route["route"]
    answer = "stream" if "x-convoy-stream" in headers else "JSON" if route["name"].endswith("generation_json") else ""
    limits = [f"whole {action['timeout']}"] if action.get("timeout", "0s") != "0s" else []
    first = action.get("retry_policy", {}).get("per_try_timeout")
    limits += [f"first token {first}"] if first else []
    limits += [f"silence {action['idle_timeout']}"] if action.get("idle_timeout", "0s") != "0s" else []
    who = "the doctor" if "x-doctor-lane" in headers else who
    return Route(route["name"], path, method, answer, action["cluster"], ", ".join(limits), who)


def _paths(match: Json) -> list[str]:
    """A regular expression's alternatives, one each: `/chat|/docs(/.*)?` are two."""
    if "safe_regex" not in match:
        return [str(match.get("path") or f"{match.get('prefix', '')}*")]
    parts, depth = [""], 0
    for character in match["safe_regex"]["regex"]:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.replace("\\", "") for part in parts]


def _hosts(clusters: Json | None) -> list[Json]:
    found: list[Json] = (clusters or {}).get("cluster_statuses", [])
    return [host for cluster in found if cluster["name"] == "engine" for host in cluster.get("host_statuses", [])]


def _address(host: Json) -> str:
    address = host["address"]["socket_address"]
    return f"{address['address']}:{address['port_value']}"


def _health(host: Json | None, *, is_silent: bool) -> str:
    if host is None:
        return "?" if is_silent else "unknown to it"
    status = host["health_status"]
    words = {"failed_outlier_check": "ejected", "failed_active_health_check": "fails checks", "failed_active_degraded_check": "degraded"}
    found = [word for name, word in words.items() if status.get(name)]
    eds = status.get("eds_health_status", "HEALTHY")
    return ", ".join(found + ([eds.lower()] if eds != "HEALTHY" else [])) or "healthy"
