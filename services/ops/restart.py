"""`convoy restart`: parts of the running stack, or all in order, replaced by new processes while clients are served."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from services.ops import begun, start
from services.ops.plan import find_state, merge, read_plan
from services.ops.restart_edge import restart_edge, restart_tools
from services.ops.restart_envoy import restart_envoy
from services.ops.restart_pods import restart_pods
from services.ops.state import OpsError
from services.ops.terminal import Terminal
from services.settings.common import RESTART_ALL, RESTART_EDGE, RESTART_PODS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from services.ops.plan import Plan
    from services.ops.state import Run, StateDir

ALLOWED = ("pods", "edge", "envoy", "tools")
"""In this order when all are restarted: what answers first, then what sends to it."""


def restart(name: str, limit_seconds: float, environ: Mapping[str, str] | None = None) -> None:
    """Restarts `name`, or everything if it is empty; raises `OpsError` with the reason if what ran before goes on."""
    if name and name not in ALLOWED:
        raise OpsError(f"`convoy restart {name}` is not possible; what can be restarted: {', '.join(ALLOWED)}; without a name, all of them")
    shell, terminal = os.environ if environ is None else environ, Terminal()
    state = find_state(shell)
    run = start.running(state)
    if run is None:
        raise OpsError("nothing runs; start it with `convoy up`")
    with state.lock():
        for step in [name] if name else ALLOWED:
            plan = again(state, shell)
            kinds = {RESTART_ALL["applies"]} if not name else set()
            try:
                terminal.say(_STEPS[step](plan, state.run() or run, kinds, limit_seconds, terminal))
            except KeyboardInterrupt:
                raise OpsError(f"stopped at: {step}; what came before it was replaced, what comes after it was not") from None
            finally:
                terminal.settle()
        if not name:
            begun.note(state, again(state, shell), {RESTART_ALL["applies"]})


def again(state: StateDir, shell: Mapping[str, str]) -> Plan:
    """The plan of now. What the shell of `convoy up` gave stays, before `.env`, unless this shell gives another value."""
    return read_plan(merge(shell, begun.shell_of(state)))


def _pods(plan: Plan, run: Run, kinds: set[str], limit_seconds: float, terminal: Terminal) -> str:
    return restart_pods(plan, run, kinds | {RESTART_PODS["applies"]}, limit_seconds, terminal)


def _edge(plan: Plan, _run: Run, kinds: set[str], _limit: float, terminal: Terminal) -> str:
    return restart_edge(plan, kinds | {RESTART_EDGE["applies"]}, terminal.progress)


def _envoy(plan: Plan, run: Run, _kinds: set[str], _limit: float, _terminal: Terminal) -> str:
    return restart_envoy(plan.state, run)


def _tools(plan: Plan, run: Run, _kinds: set[str], _limit: float, terminal: Terminal) -> str:
    return restart_tools(plan.state, run, terminal.progress)


_STEPS: dict[str, Callable[[Plan, Run, set[str], float, Terminal], str]] = {"pods": _pods, "edge": _edge, "envoy": _envoy, "tools": _tools}
