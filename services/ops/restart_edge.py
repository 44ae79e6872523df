"""`convoy restart edge` and `tools`: new processes for what no request passes through, so Envoy serves on meanwhile."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from services.files import write_atomically
from services.ops import begun, edge_told, supervisor_client
from services.ops.state import ROOT, OpsError
from services.settings.reader import as_environment, given, given_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.ops.plan import Plan
    from services.ops.state import Run, StateDir

_MAX_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.1


def restart_edge(plan: Plan, kinds: set[str], tell: Callable[[str], None]) -> str:
    """Replaces the edge; what came of it, in words. `kinds`: which changed settings the new one shall have.

    Raises `OpsError` with the reason if it runs with what it had before.
    """
    state, began = plan.state, time.monotonic()
    path = given_path(state.path, "edge")
    before = path.read_bytes() if path.exists() else None
    fresh = {name: value for name, value in as_environment(plan.edge).items() if begun.applies()[name] in kinds}
    write_atomically(path, msgspec.json.encode(given(state.path, "edge") | fresh), mode=0o600)
    is_tried = False
    try:
        tell("trying the edge's settings and files")
        _check(plan)
        tell("waiting for the edge")
        is_tried = True
        _again(state)
    except (OpsError, KeyboardInterrupt):
        _put_back(state, before)
        if is_tried:
            _start_again(state, "edge")
        raise
    begun.note(state, plan, kinds)
    return f"the edge was replaced in {time.monotonic() - began:.1f} s; Envoy served on"


def restart_tools(state: StateDir, run: Run, tell: Callable[[str], None]) -> str:
    """Restarts what watches the stack, one after the other."""
    began = time.monotonic()
    for name in run.parts:
        tell(f"waiting for {name}")
        _start_again(state, name)
        _until(lambda name=name: _pid(state, name) > 0, f"{name} does not run", state, name)  # type: ignore[misc] # bound now
    if not run.parts:
        return "no tools run"
    return f"{', '.join(run.parts)} were started again in {time.monotonic() - began:.1f} s"


def _check(plan: Plan) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.edge", "validate"], cwd=ROOT, env=plan.env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it gave no reason"]
        raise OpsError(f"the edge was not replaced, the one before serves on: {lines[-1].removeprefix('edge: ')}")


def _again(state: StateDir) -> None:
    began = time.time()
    _start_again(state, "edge")

    def is_told() -> bool:
        told = edge_told.read(state)
        return told.updated_at > began and told.is_agreed and _pid(state, "edge") > 0

    _until(is_told, "the new edge does not say that Envoy runs what it writes", state, "edge")


def _put_back(state: StateDir, before: bytes | None) -> None:
    """What it had before, for whoever starts it next."""
    path = given_path(state.path, "edge")
    if before is None:
        path.unlink(missing_ok=True)
    else:
        write_atomically(path, before, mode=0o600)


def _start_again(state: StateDir, name: str) -> None:
    try:
        try:
            if _pid(state, name):
                supervisor_client.stop(state.socket, name)
        finally:
            supervisor_client.start(state.socket, name)  # also after Ctrl-C: one that was stopped is not started by anybody else
    except supervisor_client.SupervisorUnreachableError as error:
        raise OpsError(f"{name} cannot be started again ({error}); see `convoy status`") from error


def _pid(state: StateDir, name: str) -> int:
    try:
        program = supervisor_client.programs(state.socket).get(name)
    except supervisor_client.SupervisorUnreachableError:
        return 0
    return program.pid if program and program.state == "running" else 0


def _until(condition: Callable[[], bool], problem: str, state: StateDir, name: str) -> None:
    deadline = time.monotonic() + _MAX_WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise OpsError(f"{problem} after {_MAX_WAIT_SECONDS:g} s; see `convoy status` and {state.logs / name}.log")
        time.sleep(_POLL_SECONDS)
