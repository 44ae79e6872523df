"""Stops a stack: in good order, or at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.ops import processes

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.ops.state import StateDir

# Beyond the pods' drain time: the runner's margin, then edge and Envoy with ten seconds each.
_MARGIN_SECONDS = 35.0
_DEFAULT_DRAIN_SECONDS = 30.0


@dataclass(frozen=True)
class Stopped:
    """What was ended: how many processes in good order, and by name those that had to be killed or had lost their supervisor."""

    num_processes: int
    leftovers: list[str]


def stop(state: StateDir, tell: Callable[[str], None]) -> Stopped:
    """Lets the pods drain while Envoy still forwards, ends everything, removes the run's files. The caller holds the lock."""
    found = processes.find(state.path)
    run = state.run()
    drain = run.drain_timeout_seconds if run else _DEFAULT_DRAIN_SECONDS
    supervisor = processes.supervisor(found)
    if supervisor is not None:
        tell(f"stopping (running requests may take up to {drain:g} s)")
        # supervisord takes its programs down by priority, highest first, each group fully before the next.
        processes.send([supervisor], "terminate")
        processes.wait_gone([supervisor], drain + _MARGIN_SECONDS)
    leftovers = processes.end_leftovers(state.path, grace_seconds=min(drain, 5))
    state.clear()
    return Stopped(len(found), leftovers)


def end_now(state: StateDir) -> None:
    """Kills everything and removes the run's files: for a start that failed, or a second Ctrl-C."""
    supervisor = processes.supervisor(processes.find(state.path))
    if supervisor is not None:
        processes.send([supervisor], "kill")  # first, or it would start the others again
        processes.wait_gone([supervisor], 5)
    processes.kill_all(state.path)
    state.clear()
