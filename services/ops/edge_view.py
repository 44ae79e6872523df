"""How `convoy edge` looks: a table for each question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import RenderableType

    from services.ops.edge import EdgeView
    from services.ops.edge_facts import ClientFact

MAX_CLIENTS = 20
_NUMBERS = {"req/min", "burst", "keys", "active", "requests", "errors", "remaining", "count", "written", "runs"}


def parts(view: EdgeView, *, is_all: bool) -> Iterator[RenderableType]:
    """What is printed, in order."""
    yield Text(view.url)
    if not view.is_envoy_answering:
        yield Text("Envoy does not answer on its admin port; what follows is from files and may be old", "red")
    yield from (Text(f"edge: {problem}", "red") for problem in view.problems)
    routes = [[route.path, route.method, route.answer, route.cluster, route.limits, route.who] for route in view.routes]
    yield _table("\nroutes, the first that fits", ("path", "method", "answer", "cluster", "time limits", "who"), routes)
    yield from _clients(view, is_all=is_all)
    pods = [
        [pod.name, pod.address, _judged(pod.state, "ready"), _judged(pod.envoy, "healthy"), pod.active, pod.requests, pod.errors]
        for pod in view.pods
    ]
    yield _table("\npods", ("name", "address", "says", "Envoy says", "active", "requests", "errors"), pods)
    circuits = [
        [item.name, Text("open", "red") if item.is_open else Text("closed", "green"), "-" if item.remaining is None else item.remaining]
        for item in view.circuits
    ]
    if circuits:
        yield _table("\ncircuits of the pool", ("of", "state", "remaining"), circuits)
        told = [[group, name, count] for group, members in view.counts.items() for name, count in members.items()]
        yield _table("\nsince Envoy's start", ("what", "which", "count"), told)
    versions = [[name, written, _judged(runs or "-", written)] for name, (written, runs) in view.versions.items()]
    yield _table("\nversions of Envoy's files", ("file", "written", "runs"), versions)


def _clients(view: EdgeView, *, is_all: bool) -> Iterator[RenderableType]:
    if view.clients is None:
        yield Text("\nno clients file: whoever reaches the port may call, and is `ops`")
        return
    shown = view.clients if is_all else view.clients[:MAX_CLIENTS]
    columns = ("client", "role", "class", "keys", "expires")
    yield _table("\nclients", columns, [_client(client) for client in shown])
    if len(shown) < len(view.clients):
        yield Text(f"and {len(view.clients) - len(shown)} more (--all)", "dim")
    classes = [[name, limits["requests_per_minute"], limits["burst"]] for name, limits in view.classes.items()]
    yield _table("\nclasses of limits", ("class", "req/min", "burst"), classes)


def _client(client: ClientFact) -> list[object]:
    limits = f"{client.limit_class} ({client.requests_per_minute}/min, burst {client.burst})"
    expired = f" ({client.num_expired_keys} expired)" if client.num_expired_keys else ""
    return [
        client.name,
        client.role,
        limits,
        f"{client.num_keys}{expired}",
        _judged(client.expires, client.expires.removeprefix("expired ")),
    ]


def _judged(value: str, good: str) -> Text:
    return Text(value, "green" if value == good else "yellow")


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    result = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left", title_style="bold cyan")
    for column in columns:
        result.add_column(column, no_wrap=True, justify="right" if column in _NUMBERS else "left")
    for row in rows:
        result.add_row(*[cell if isinstance(cell, Text) else Text(str(cell)) for cell in row])
    return result
