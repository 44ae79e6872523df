"""`convoy doctor` as people type it: finds what runs, says what it will do, shows what it found."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from services.ops import processes
from services.ops.doctor.examination import MAX_SECONDS, examine
from services.ops.doctor.lane import NUM_PODS
from services.ops.doctor.rows import table
from services.ops.doctor.target import Target
from services.ops.terminal import Terminal
from services.settings import EdgeSettings, env_file_of, load, load_again
from services.settings.reader import given

if TYPE_CHECKING:
    from services.ops.doctor.rows import Report
    from services.ops.state import StateDir

FAILED, NOTHING_RUNS = 1, 3

_INTENT = (
    "convoy doctor: examines {url} by doing. It starts {pods} pods of its own (fake engine), has the edge make a lane in Envoy that only "
    "it can use, and breaks these pods on purpose; clients' requests never meet them. It asks some 100 to 200 requests, with keys of "
    "its own that end with it; the pods in service get two. It takes everything away again, after {seconds:.0f} s at the latest. "
    "Ctrl-C stops it."
)


def target_of(state: StateDir) -> Target | None:
    """The stack that runs in this state folder, with the settings that it has now; None if nothing runs."""
    run, supervisor = state.run(), processes.supervisor(processes.find(state.path))
    if run is None or supervisor is None:
        return None
    env = supervisor.environ()
    env_file, now = env_file_of(env), env | given(state.path, "edge")
    settings = load_again(EdgeSettings, env_file, now) if env_file else load(EdgeSettings, now)
    return Target(run.url, settings, env, state.envoy().pid, run.parts)


def doctor(state: StateDir, *, is_json: bool, is_quick: bool) -> int:
    """Runs the examination; the exit code."""
    terminal, target = Terminal(), target_of(state)
    if target is None:
        terminal.say("null" if is_json else "nothing runs; start it with `convoy up`")
        return NOTHING_RUNS
    if not is_json:
        terminal.say(_INTENT.format(url=target.url, pods=NUM_PODS, seconds=MAX_SECONDS))

    def tell(text: str) -> None:
        if not is_json and terminal.console.is_terminal:
            terminal.progress(text)

    try:
        report = asyncio.run(examine(target, tell, is_quick=is_quick))
    finally:
        terminal.settle()
    if is_json:
        terminal.say(msgspec.json.encode(report).decode())
    else:
        terminal.show(table(report.rows))
        terminal.say(_summary(report))
    return 0 if report.healthy else FAILED


def _summary(report: Report) -> str:
    count = {mark: sum(row.mark == mark for row in report.rows) for mark in ("ok", "failed", "not in use")}
    told = f"{count['ok']} well, {count['failed']} not, {count['not in use']} not in use"
    return f"{told}; {report.num_requests} requests in {report.seconds:.0f} s"
