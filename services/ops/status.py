"""What runs: gathered from supervisor, runner and pods, shown as a table or as JSON."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from services.ops import edge_told, probe, processes, supervisor_client
from services.ops.state import PROGRAMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from services.ops.state import Run, StateDir
    from services.pods_file import CrashLoop, PodEntry, PodsFile


class Row(Struct, frozen=True):
    """One program or pod. `uptime_seconds` is 0 for one that does not run; `last_exit` says how its process before this one ended.

    `next_try_at`: of a pod in a crash loop, in Unix seconds, 0 while it is being tried. `is_leaving`: it shall end, another has its place.
    """

    name: str
    state: str
    address: str
    pid: int
    uptime_seconds: float
    restarts: int
    last_exit: str
    log: str
    next_try_at: float = 0
    is_leaving: bool = False

    @property
    def is_well(self) -> bool:
        """Whether it does its work."""
        return self.state in {"running", "ready"}


class Status(Struct, frozen=True):
    """The whole stack; `ready` means that all that serves is well and a request through Envoy reaches a pod.

    `problems`: what the edge cannot put in force, one line each. `roll`: how far a restart of all pods is; empty if none is under way.
    """

    url: str
    ready: bool
    programs: list[Row]
    pods: list[Row]
    problems: list[str] = []
    roll: str = ""


def gather(state: StateDir) -> Status | None:
    """The state of the stack in this folder, or None if nothing runs."""
    run = state.run()
    if run is None or processes.supervisor(processes.find(state.path)) is None:
        return None
    known = state.pods()
    programs, pods = _programs(state, run), _pods(state, known)
    roll = (
        f"{known.roll.replaced} of {known.roll.total} pods replaced; {known.roll.progress}" if known.roll and not known.roll.is_over else ""
    )
    serving = [row for row in programs if row.name in PROGRAMS]
    problems = edge_told.problems(state, time.time())
    is_well = not problems and all(row.is_well for row in serving) and _are_well(pods, run.pods, is_rolling=bool(roll))
    return Status(run.url, is_well and probe.is_ready(run.url), programs, pods, problems, roll)


def _are_well(pods: Sequence[Row], number: int, *, is_rolling: bool) -> bool:
    """Whether as many serve as there shall be; while all are replaced one by one, one more may be coming up."""
    staying = [row for row in pods if not row.is_leaving]
    if is_rolling:
        return len({row.name for row in staying if row.is_well}) == number
    return len(staying) == number and all(row.is_well for row in staying)


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
        result.add_row(row.name, f"[{colour}]{_state(row)}[/]", row.address, str(row.pid or "-"), uptime, *restarts, row.log)
    return result


def _state(row: Row) -> str:
    wait = max(0.0, row.next_try_at - time.time())
    return f"{row.state}, next try in {wait:.0f} s" if row.next_try_at else row.state


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


def _pods(state: StateDir, known: PodsFile) -> list[Row]:
    loops = {loop.name: loop for loop in known.loops}
    rows = [
        _pod_row(state, pod, said, loops.pop(pod.name, None)) for pod, said in zip(known.pods, probe.readiness(known.pods), strict=True)
    ]
    return rows + [_loop_row(state, loop) for loop in loops.values()]


def _pod_row(state: StateDir, pod: PodEntry, said: probe.Readiness, loop: CrashLoop | None) -> Row:
    shown = f"{said.state}: {said.progress}" if said.state in {"loading", "warming", "stalled"} and said.progress else said.state
    return Row(
        name=pod.name,
        state=f"crash loop, {shown}" if loop and said.state != "ready" else shown,
        address=f"{pod.host}:{pod.port}",
        pid=pod.pid,
        uptime_seconds=time.time() - pod.started_at,
        restarts=pod.restarts,
        last_exit=pod.last_exit,
        log=str(state.logs / f"{pod.name}.log"),
        is_leaving=pod.is_leaving,
    )


def _loop_row(state: StateDir, loop: CrashLoop) -> Row:
    log = str(state.logs / f"{loop.name}.log")
    return Row(loop.name, "crash loop", "", 0, 0, loop.restarts, loop.last_exit, log, next_try_at=loop.next_try_at)
