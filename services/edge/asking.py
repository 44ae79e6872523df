"""What the edge asks over HTTP: a pod whether it is ready, Envoy's admin what it runs. Answers only; nothing is decided here."""

from __future__ import annotations

import asyncio
import errno
import json
import re
from typing import TYPE_CHECKING

import aiohttp
import msgspec

if TYPE_CHECKING:
    from services.edge.pods import Answer
    from services.pods_file import PodEntry

# A ready pod answers in microseconds, and in milliseconds on a busy machine.
_POD_TIMEOUT = aiohttp.ClientTimeout(total=1.0)
_ADMIN_TIMEOUT = aiohttp.ClientTimeout(total=1.0)

_SCOPES = {
    "cluster.engine": "endpoints",
    "cluster_manager.cds": "clusters",
    "http.clients.rds.clients": "routes",
    **{f"extension_config_discovery.http_filter.{name}": name for name in ("keys", "limit_client", "limit_address")},
}
_REFUSALS = ("update_rejected", "update_failure", "config_fail")
_STATS_FILTER = rf"^({'|'.join(re.escape(scope) for scope in _SCOPES)})\.(version_text|{'|'.join(_REFUSALS)})$"


class Running(msgspec.Struct, frozen=True):
    """What Envoy says it runs: the version of each resource, and how many updates of it Envoy has refused since it started."""

    versions: dict[str, str]
    refused: dict[str, int]


async def ask_pod(session: aiohttp.ClientSession, entry: PodEntry) -> Answer:
    """Asks a pod's `/readyz`; every failure is an answer, too."""
    try:
        async with session.get(f"http://{entry.host}:{entry.port}/readyz", timeout=_POD_TIMEOUT) as response:
            return _judge(entry, response.status, await response.text())
    except aiohttp.ClientConnectorError as error:
        return "refused" if error.os_error.errno == errno.ECONNREFUSED else "silent"
    except (aiohttp.ClientError, asyncio.TimeoutError, UnicodeDecodeError):
        return "silent"


async def ask_name(session: aiohttp.ClientSession, host: str, port: int) -> str | None:
    """Asks whoever listens there which pod it is; None if that is not said."""
    try:
        async with session.get(f"http://{host}:{port}/readyz", timeout=_POD_TIMEOUT) as response:
            body = json.loads(await response.text())
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError):
        return None
    name = body.get("pod") if isinstance(body, dict) else None
    return name if isinstance(name, str) and name else None


def _judge(entry: PodEntry, status: int, text: str) -> Answer:
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    fields = body if isinstance(body, dict) else {}
    if fields.get("pod", entry.name) != entry.name:
        return "foreign"
    if fields.get("state") == "draining":
        return "draining"
    if fields.get("state") == "stalled":
        return "stalled"
    return "ready" if status == 200 else "loading"


async def ask_envoy(session: aiohttp.ClientSession, admin_port: int) -> Running | None:
    """Asks Envoy's admin on loopback which versions it runs; None if it does not answer."""
    query = {"filter": _STATS_FILTER, "format": "json"}
    try:
        async with session.get(f"http://127.0.0.1:{admin_port}/stats", params=query, timeout=_ADMIN_TIMEOUT) as response:
            stats = json.loads(await response.text())["stats"]
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError, KeyError):
        return None
    versions: dict[str, str] = {}
    refused: dict[str, int] = dict.fromkeys(_SCOPES.values(), 0)
    for stat in stats:
        scope, _, name = str(stat["name"]).rpartition(".")
        if name == "version_text":
            versions[_SCOPES[scope]] = str(stat["value"])
        else:
            refused[_SCOPES[scope]] += int(stat["value"])
    return Running(versions, refused)
