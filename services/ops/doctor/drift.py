"""Whether Envoy runs what the files say, all the way: what people wrote, what the edge made of it, what Envoy took over."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from services import envoy_mark, pods_file
from services.ops.doctor.rows import failed, ok
from services.ops.doctor.visit import until
from services.settings import SettingsError, env_file_of, load, read_env_file
from services.settings.common import LIVE
from services.settings.declared import ALL
from services.settings.reader import applies_of

if TYPE_CHECKING:
    from services.ops.doctor.rows import Finding
    from services.ops.doctor.visit import Visit

_SETTLE_SECONDS = 5.0

_SCOPES = {
    "clusters": "cluster_manager.cds",
    "routes": "http.clients.rds.clients",
    "endpoints": "cluster.engine",
    **{name: f"extension_config_discovery.http_filter.{name}" for name in ("keys", "limit_client", "limit_address")},
}
"""Where Envoy tells which version of each resource it runs."""


async def files(visit: Visit) -> Finding:
    """What people write (Envoy's files, clients, .env) is what counts: each as it lies, none refused."""
    wrong: list[str] = []

    async def is_in_force() -> bool:
        wrong[:] = _not_in_force(visit)
        return not wrong

    await until(is_in_force, _SETTLE_SECONDS)
    if wrong:
        return failed("; ".join(wrong))
    names = [Path(path).name for path in visit.target.told()["inputs"] if Path(path) != visit.target.guests_file]
    return ok(f"{len(names)} files in force as they lie: {', '.join(names)}")


def _not_in_force(visit: Visit) -> list[str]:
    told = visit.target.told()
    wrong = [told["error"]] if told.get("error") else []
    for name, said in told.get("inputs", {}).items():
        path = Path(name)
        if path != visit.target.guests_file and not said["error"] and hashlib.sha256(_content(path)).hexdigest() != said["sha256"]:
            wrong.append(f"{path.name} is another one than the edge has in force")
    return wrong


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


async def resources(visit: Visit) -> Finding:
    """Of each file that the edge wrote Envoy runs the newest version."""
    pattern = rf"^({'|'.join(map(re.escape, _SCOPES.values()))})\.version_text$"
    running: dict[str, Any] = {}

    async def is_newest() -> bool:
        stats = await visit.admin.stats(pattern)
        running.update({name: str(stats.get(f"{scope}.version_text", "none")) for name, scope in _SCOPES.items()})
        return running == _written(visit)

    is_same = await until(is_newest, _SETTLE_SECONDS)
    if is_same:
        return ok(", ".join(f"{name} {number}" for name, number in running.items()))
    written = _written(visit)
    return failed(
        "; ".join(f"{name}: Envoy runs {running[name]}, {written[name]} is written" for name in _SCOPES if running[name] != written[name])
    )


def _written(visit: Visit) -> dict[str, str]:
    return {name: str(visit.target.read(f"xds/{name}.json").get("version_info", "none")) for name in _SCOPES}


async def bootstrap(visit: Visit) -> Finding:
    """What Envoy reads only at its start (listener, admin, lua/request.lua) has not changed since."""
    node = json.loads((await visit.admin.get("/server_info"))[1])["node"]
    started_with, config = envoy_mark.found_in(node), visit.target.read("envoy.yaml")
    wanted = envoy_mark.mark_of(config) if config else "no envoy.yaml"
    if started_with == wanted:
        return ok(f"envoy.yaml and its programs are what Envoy was started with ({wanted[:8]})")
    return failed(
        f"envoy.yaml or a program that it names has changed since Envoy was started ({started_with[:8] or 'unmarked'}, now {wanted[:8]})"
    )


async def settings(visit: Visit) -> Finding:
    """No setting in .env waits for a restart."""
    env, path = visit.target.env, env_file_of(visit.target.env)
    if path is None or not path.exists():
        return ok("there is no .env: settings are those of the start")
    running = visit.target.read("begun.json")  # kept up by `convoy restart` and `convoy scale`
    try:
        values = {name: value for name, value in read_env_file(path).items() if value.strip()}
        wanted = {name.upper(): value for kind in ALL for name, value in msgspec.structs.asdict(load(kind, {**env, **values})).items()}
    except SettingsError as error:
        return failed(str(error))
    kinds = {field.name.upper(): applies_of(field) for kind in ALL for field in msgspec.structs.fields(kind)}
    changed = [name for name in values if running.get("settings", {}).get(name, wanted[name]) != wanted[name]]
    ours = [name for name in changed if name not in running.get("of_the_shell", [])]
    waiting = [f"{name}={values[name]} waits for `{kinds[name]}`" for name in ours if kinds[name] != LIVE["applies"]]
    return failed("; ".join(waiting)) if waiting else ok(f"{len(values)} settings of {path.name} in force")


async def pods(visit: Visit) -> Finding:
    """The pods that the runner lists, those that the edge asks, and those that Envoy uses are the same."""
    lists: dict[str, set[str]] = {}

    async def is_same() -> bool:
        lists.update(await _lists(visit))
        return len({frozenset(addresses) for addresses in lists.values()}) == 1

    if await until(is_same, _SETTLE_SECONDS):
        addresses = next(iter(lists.values()))
        return ok(f"{', '.join(lists)} agree: {', '.join(sorted(addresses)) or 'no pod'}")
    return failed("; ".join(f"{name}: {', '.join(sorted(addresses)) or 'none'}" for name, addresses in lists.items()))


async def _lists(visit: Visit) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    source = visit.target.settings.pod_source or f"file:{visit.target.state_dir / pods_file.NAME}"
    if source.startswith("file:"):
        try:
            listed = pods_file.read(Path(source.removeprefix("file:"))).pods
        except (FileNotFoundError, ValueError):
            listed = ()
        found["pods file"] = {f"{pod.host}:{pod.port}" for pod in listed}
    found["edge"] = {f"{pod['host']}:{pod['port']}" for pod in visit.target.told().get("pods", [])}
    hosts = (await visit.admin.cluster("engine")).get("host_statuses", [])
    addresses = [host["address"]["socket_address"] for host in hosts]
    found["Envoy"] = {f"{address['address']}:{address['port_value']}" for address in addresses}
    return found


async def breakers(visit: Visit) -> Finding:
    """The limits of the running pool are those of the settings."""
    settings = visit.target.settings
    wanted = dict.fromkeys(("max_requests", "max_retries"), settings.max_requests)
    wanted["max_pending_requests"] = settings.max_pending_requests
    wanted["max_connections"] = settings.max_requests + settings.max_pending_requests
    thresholds = (await visit.admin.cluster("engine")).get("circuit_breakers", {}).get("thresholds", [])
    running: dict[str, int] = next((item for item in thresholds if item.get("priority", "DEFAULT") == "DEFAULT"), {})
    wrong = [f"{name} is {running.get(name)}, set to {number}" for name, number in wanted.items() if running.get(name) != number]
    return failed("; ".join(wrong)) if wrong else ok(", ".join(f"{name} {number}" for name, number in wanted.items()))
