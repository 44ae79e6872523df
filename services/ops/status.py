"""What runs: gathered from supervisor, runner and pods, shown as a table or as JSON."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from services.ops import edge_told, probe, processes, supervisor_client
from services.ops.state import PROGRAMS

if TYPE_CHECKING:
    from rich.table import Table

    from services.ops.state import Run, StateDir
    from services.pods_file import PodEntry


class Row(Struct, frozen=True):
    """One program or pod. `uptime_seconds` is 0 for one that does not run; `last_exit` says how its process before this one ended."""

    name: str
    state: str
    address: str
    pid: int
    uptime_seconds: float
    restarts: int
    last_exit: str
    log: str

    @property
    def is_well(self) -> bool:
        """Whether it does its work."""
        return self.state in {"running", "ready"}


class Status(Struct, frozen=True):
    """The whole stack; `ready` means that all that serves is well and a request through Envoy reaches a pod.

    `problems`: what the edge cannot put in force, one line each.
    """

    url: str
    ready: bool
    programs: list[Row]
    pods: list[Row]
    problems: list[str] = []


def gather(state: StateDir) -> Status | None:
    """The state of the stack in this folder, or None if nothing runs."""
    run = state.run()
    if run is None or processes.supervisor(processes.find(state.path)) is None:
        return None
    programs, pods = _programs(state, run), _pods(state)
    serving = [row for row in programs if row.name in PROGRAMS]
    problems = edge_told.problems(state, time.time())
    is_well = not problems and all(row.is_well for row in serving + pods) and len(pods) == run.pods and probe.is_ready(run.url)
    return Status(run.url, is_well, programs, pods, problems)


def table(status: Status) -> Table:
    """The rows for a terminal; the columns about restarts only if there were any."""
    from rich.table import Table  # noqa: PLC0415 - `status --json` and tests of `gather` need no rich

    rows = status.programs + status.pods
    has_restarts = any(row.restarts for row in rows)
    result = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "state", "address", "pid", "up", *(("restarts", "last exit") if has_restarts else ()), "log"):
        result.add_column(column, no_wrap=True, justify="right" if column in {"pid", "up", "restarts"} else "left")
    for row in rows:
        colour = "green" if row.is_well else "yellow"
        restarts = (str(row.restarts), row.last_exit) if has_restarts else ()
        uptime = duration(row.uptime_seconds) if row.pid else "-"
        result.add_row(row.name, f"[{colour}]{row.state}[/]", row.address, str(row.pid or "-"), uptime, *restarts, row.log)
    return result


def duration(seconds: float) -> str:
    """`42 s`, `3 min`, `2 h 5 min`, `4 d 1 h`: two units at most."""
    whole = max(0, int(seconds))
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{whole} s"


def _programs(state: StateDir, run: Run) -> list[Row]:
    try:
        known = supervisor_client.programs(state.socket)
    except supervisor_client.SupervisorUnreachableError:
        known = {}  # it starts or stops at this moment: its programs are shown as unknown
    histories = state.histories()
    addresses = {"envoy": run.url, "edge": "", "runner": "", **run.parts}
    rows = []
    for name, address in addresses.items():
        program, history = known.get(name), histories.get(name)
        if name == "envoy" and program and program.pid:
            # The supervisor knows Envoy's parent only.
            envoy = state.envoy()
            program = structs.replace(program, pid=envoy.pid or program.pid, started_at=envoy.started_at or program.started_at)
        rows.append(
            Row(
                name=name,
                state=program.state if program else "unknown",
                address=address,
                pid=program.pid if program else 0,
                uptime_seconds=time.time() - program.started_at if program and program.pid else 0,
                restarts=history.restarts if history else 0,
                last_exit=history.last_exit if history else "",
                log=str(state.logs / f"{name}.log"),
            )
        )
    return rows


def _pods(state: StateDir) -> list[Row]:
    pods = state.pods().pods
    return [_pod_row(state, pod, said) for pod, said in zip(pods, probe.readiness(pods), strict=True)]


def _pod_row(state: StateDir, pod: PodEntry, said: probe.Readiness) -> Row:
    return Row(
        name=pod.name,
        state=f"{said.state}: {said.progress}" if said.state in {"loading", "warming", "stalled"} and said.progress else said.state,
        address=f"{pod.host}:{pod.port}",
        pid=pod.pid,
        uptime_seconds=time.time() - pod.started_at,
        restarts=pod.restarts,
        last_exit=pod.last_exit,
        log=str(state.logs / f"{pod.name}.log"),
    )
