"""`convoy edge`: gathers what the edge wrote, what Envoy says of it, and who may call; shown as tables or as JSON."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec
from msgspec import Struct

from services.clients import reading
from services.clients.reading import ClientsFileError
from services.ops import begun, edge_facts, edge_told, edge_view, probe, start
from services.ops.edge_facts import Circuit, ClientFact, Json, PodFact, Route
from services.ops.state import ROOT
from services.ops.terminal import Terminal

if TYPE_CHECKING:
    from services.clients.declared import ClientsFile, Limits
    from services.ops.state import Run, StateDir

ENVOY_SILENT, NOTHING_RUNS = 1, 3


class _Stat(Struct):
    name: str = ""
    value: int | float | str = 0


class _Stats(Struct):
    stats: list[_Stat] = []


class EdgeView(Struct, frozen=True):
    """All that is shown. `clients` is None without a clients file; `versions`: resource -> (written, run)."""

    url: str
    is_envoy_answering: bool
    problems: list[str]
    routes: list[Route]
    clients: list[ClientFact] | None
    classes: dict[str, dict[str, int]]
    pods: list[PodFact]
    circuits: list[Circuit]
    counts: dict[str, dict[str, int]]
    versions: dict[str, tuple[str, str]]


def show(state: StateDir, *, is_json: bool, is_all: bool) -> int:
    """Prints it; the exit code."""
    terminal, run = Terminal(), start.running(state)
    if run is None:
        terminal.say("null" if is_json else "nothing runs; start it with `convoy up`")
        return NOTHING_RUNS
    view = gather(state, run)
    if is_json:
        terminal.say(msgspec.json.encode(view).decode())
    else:
        for part in edge_view.parts(view, is_all=is_all):
            terminal.show(part)
    return 0 if view.is_envoy_answering else ENVOY_SILENT


def gather(state: StateDir, run: Run) -> EdgeView:
    """Files below the state folder, Envoy's admin on loopback, and the clients file."""
    told, now = edge_told.read(state), time.time()
    clusters, stats = _admin(run, "/clusters?format=json"), _stats(run)
    problems = edge_told.problems(state, now)
    file: ClientsFile | None = None
    path = ROOT / Path(str(begun.read(state).settings.get("CLIENTS_FILE", "clients.yaml"))).expanduser()
    try:
        file = reading.read(path) if told.num_clients is not None else None
    except (ClientsFileError, OSError) as error:
        problems = problems if any(path.name in problem for problem in problems) else [*problems, str(error)]
    runs = told.envoy.runs if told.envoy else {}
    return EdgeView(
        url=run.url,
        is_envoy_answering=clusters is not None,
        problems=problems,
        routes=edge_facts.routes(_file(state, "routes"), has_clients=told.num_clients is not None),
        clients=None if told.num_clients is None else edge_facts.clients(file, now),
        classes={name: _limits(limits) for name, limits in sorted(file.classes().items())} if file else {},
        pods=edge_facts.pods(told, clusters),
        circuits=edge_facts.circuits(stats),
        counts=edge_facts.counts(stats),
        versions={name: (version, runs.get(name, "")) for name, version in told.written.items()},
    )


def _limits(limits: Limits) -> dict[str, int]:
    return {"requests_per_minute": limits.requests_per_minute, "burst": limits.burst}


def _stats(run: Run) -> dict[str, int]:
    query = f"/stats?format=json&filter={quote(edge_facts.STATS, safe='')}"
    status, body = probe.get("127.0.0.1", run.admin_port, query)
    try:
        found = msgspec.json.decode(body, type=_Stats) if status == probe.OK else _Stats()
    except msgspec.DecodeError:
        return {}
    return {stat.name: int(stat.value) for stat in found.stats if stat.name}


def _admin(run: Run, path: str) -> Json | None:
    status, body = probe.get("127.0.0.1", run.admin_port, path)
    return _decoded(body) if status == probe.OK else None


def _file(state: StateDir, name: str) -> Json | None:
    try:
        return _decoded((state.path / "xds" / f"{name}.json").read_bytes())
    except FileNotFoundError:
        return None


def _decoded(content: bytes) -> Json | None:
    try:
        return msgspec.json.decode(content, type=Json)
    except msgspec.DecodeError:
        return None
