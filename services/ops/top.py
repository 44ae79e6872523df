"""`convoy top`: what each pod does now, as a table that is drawn again each second."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from services.ops import probe
from services.ops.pod_figures import WINDOW_SECONDS, Look, figures, parse, total
from services.ops.state import OpsError
from services.ops.status import duration
from services.ops.terminal import Terminal
from services.ops.trace_words import milliseconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from services.ops.pod_figures import Figures
    from services.ops.probe import Readiness
    from services.ops.state import Run, StateDir
    from services.pods_file import PodEntry

_PERIOD_SECONDS = 1.0
_COLUMNS = ("pod", "state", "req/s", "active", "queue", "slots", "tokens/s", "TTFT p95", "errors", "restarts", "CPU", "memory")
_LEFT = {"pod", "state", "errors"}
_MISSED_LEAST = ("memory", "CPU", "restarts", "slots", "req/s")
_NONE = Text("-")


class Watcher:
    """Looks at all pods and keeps what it saw, as far back as the table speaks of."""

    def __init__(self) -> None:
        """Has seen nothing yet."""
        self._looks: dict[tuple[str, int], list[Look]] = {}

    def look(self, pods: Sequence[PodEntry], texts: Sequence[str | None], at: float) -> None:
        """Takes in each pod's metrics at a moment. By process: one that is started again begins at zero."""
        known = {(pod.name, pod.pid): self._looks.get((pod.name, pod.pid), []) for pod in pods}
        for pod, text in zip(pods, texts, strict=True):
            if text is not None:
                kept = [look for look in known[pod.name, pod.pid] if at - look.at <= WINDOW_SECONDS]
                known[pod.name, pod.pid] = [*kept, Look(at, parse(text))]
        self._looks = known

    def of(self, pod: PodEntry) -> list[Look]:
        """The looks at a pod, oldest first; empty for one that has never answered."""
        return self._looks.get((pod.name, pod.pid), [])


def show(state: StateDir, *, is_once: bool) -> None:
    """Draws until Ctrl-C, or once after two looks that are a second apart (a rate needs two). Raises `OpsError` when nothing runs."""
    terminal, watcher = Terminal(), Watcher()
    width = terminal.console.width
    view = _look(state, watcher, width)
    if is_once or not terminal.console.is_terminal:
        time.sleep(_PERIOD_SECONDS)
        terminal.show(_look(state, watcher, width))
        return
    try:
        with Live(view, console=terminal.console, auto_refresh=False) as live:
            while True:
                time.sleep(_PERIOD_SECONDS)
                live.update(_look(state, watcher, terminal.console.width), refresh=True)
    except KeyboardInterrupt:
        return


def _look(state: StateDir, watcher: Watcher, width: int) -> RenderableType:
    run = state.run()
    if run is None:
        raise OpsError("nothing runs; start it with `convoy up`")
    pods = state.pods().pods
    said = probe.readiness(pods)
    watcher.look(pods, probe.metrics(pods), time.monotonic())
    return Group(head(run, said, time.time()), table(pods, said, watcher, width), Text(_FOOT, "dim"))


_FOOT = f"TTFT p95 and errors: last {WINDOW_SECONDS:g} s; ~ since the pod's start, where none came since."


def head(run: Run, said: Sequence[Readiness], now: float) -> Text:
    """`http://127.0.0.1:8000 · up 3 min · 2 of 2 pods ready`."""
    ready = sum(readiness.state == "ready" for readiness in said)
    return Text(f"{run.url} · up {duration(now - run.started_at)} · {ready} of {len(said)} pods ready")


def table(pods: Sequence[PodEntry], said: Sequence[Readiness], watcher: Watcher, width: int) -> Table:
    """A row for each pod, and their total; in a narrow terminal without the columns that are missed least."""
    rows = [_row(pod, readiness, watcher.of(pod)) for pod, readiness in zip(pods, said, strict=True)]
    seen = [looks for pod in pods if (looks := watcher.of(pod))]
    if len(seen) > 1:
        restarts = sum(pod.restarts for pod in pods)
        rows.append({"pod": Text("total"), "state": Text(), "restarts": Text(str(restarts)), **_cells(total(seen))})
    columns = list(_COLUMNS)
    for missed in ("", *_MISSED_LEAST):
        columns = [column for column in columns if column != missed]
        if _width(columns, rows) <= width:
            break
    result = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        result.add_column(column, no_wrap=True, justify="left" if column in _LEFT else "right")
    for row in rows:
        result.add_row(*(row.get(column, _NONE) for column in columns), style="bold" if row["pod"].plain == "total" else "")
    return result


def _width(columns: Sequence[str], rows: Sequence[Mapping[str, Text]]) -> int:
    return sum(max([len(column), *(len(row.get(column, _NONE)) for row in rows)]) for column in columns) + 2 * (len(columns) - 1)


def _row(pod: PodEntry, readiness: Readiness, looks: Sequence[Look]) -> dict[str, Text]:
    state = Text(readiness.state, "green" if readiness.state == "ready" else "yellow")
    row = {"pod": Text(pod.name), "state": state, "restarts": Text(str(pod.restarts))}
    return row | (_cells(figures(looks)) if looks else {})


def _cells(row: Figures) -> dict[str, Text]:
    """What a pod's metrics fill in."""
    capacity = "∞" if math.isinf(row.queue_capacity) else f"{row.queue_capacity:.0f}"
    about = "" if row.is_first_token_recent else "~"
    return {
        "req/s": Text(_rate(row.requests_per_second)),
        "active": Text(f"{row.in_progress:.0f}"),
        "queue": Text(f"{row.queue:.0f}/{capacity}", "yellow" if row.queue else ""),
        "slots": Text(f"{row.slots_in_use:.0f}/{row.slots:.0f}"),
        "tokens/s": Text(f"{row.tokens_per_second:.0f}"),
        "TTFT p95": _NONE if row.first_token_p95 is None else Text(f"{about}{milliseconds(row.first_token_p95 * 1000)}"),
        "errors": _errors(row),
        "CPU": _NONE if row.cpu_percent is None else Text(f"{row.cpu_percent:.0f} %"),
        "memory": Text(f"{row.memory_bytes / 2**20:.0f} MiB"),
    }


def _rate(per_second: float | None) -> str:
    return "-" if per_second is None else f"{per_second:.1f}" if per_second < 10 else f"{per_second:.0f}"


def _errors(row: Figures) -> Text:
    """`2 × 5xx, 1 broken, 5 refused`. An answer that the engine broke counts as 5xx as well, unless its headers had left."""
    parts = [
        (f"{row.server_errors:.0f} × 5xx", "red", row.server_errors),
        (f"{row.engine_errors:.0f} broken", "red", row.engine_errors),
        (f"{row.rejected:.0f} refused", "yellow", row.rejected),
    ]
    told = [Text(text, colour) for text, colour, count in parts if count]
    return Text(", ").join(told) if told else Text("0")
