"""`convoy scale N`: more pods or fewer while clients are served. Those that go finish their requests first."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from msgspec import structs

from services import pods_wanted
from services.ops import begun, edge_told, start
from services.ops.restart import again
from services.ops.restart_pods import ask
from services.ops.state import OpsError
from services.ops.terminal import Terminal
from services.settings.declared import MAX_PODS

if TYPE_CHECKING:
    from services.ops.state import Run, StateDir
    from services.pods_file import PodsFile

_POLL_SECONDS = 0.1


def scale(state: StateDir, number: int, limit_seconds: float) -> None:
    """Returns when so many pods serve and no others are there. Raises `OpsError`, with as many as before, where a new one cannot serve."""
    if not 1 <= number <= MAX_PODS:
        raise OpsError(f"`convoy scale {number}` is not possible: the number of pods must be from 1 to {MAX_PODS}")
    terminal, run = Terminal(), start.running(state)
    if run is None:
        raise OpsError("nothing runs; start it with `convoy up`")
    with state.lock():
        began = time.monotonic()
        _want(state, run, number)
        try:
            problem = _wait(state, number, limit_seconds, terminal)
        except KeyboardInterrupt:
            raise OpsError(f"left at once; the runner goes on to {number} pods, `convoy scale {run.pods}` takes that back") from None
        finally:
            terminal.settle()
        if problem and number > run.pods:
            _want(state, run, run.pods)
            raise OpsError(f"{problem}; there are {run.pods} pods as before (logs: {state.logs})")
        if problem:
            raise OpsError(f"{problem}; see `convoy status`")
        verb = "serves" if number == 1 else "serve"
        terminal.say(f"{_pods(number)} {verb} after {time.monotonic() - began:.1f} s; {_threads(state, number)}")


def _want(state: StateDir, run: Run, number: int) -> None:
    """Tells the runner, and whoever compares what is with what shall be."""
    pods_wanted.write_number(state.path, number)
    state.write_run(structs.replace(run, pods=number))
    begun.note_number(state, number)
    ask(state)


def _wait(state: StateDir, number: int, limit_seconds: float, terminal: Terminal) -> str:
    """What is wrong if it does not come to that."""
    deadline = time.monotonic() + limit_seconds
    before = {name for name, _, _ in _deaths(state.pods())}
    while True:
        known = state.pods()
        waiting = _waiting_for(state, known, number)
        if not waiting:
            return ""
        for name, restarts, reason in _deaths(known):
            if restarts and name not in before:
                return f"{name} does not become ready: {reason}"
        if time.monotonic() > deadline:
            return f"not {_pods(number)} after {limit_seconds:g} s: {waiting}"
        terminal.progress(waiting)
        time.sleep(_POLL_SECONDS)


def _deaths(known: PodsFile) -> list[tuple[str, int, str]]:
    of_pods = [(pod.name, pod.restarts, pod.last_exit) for pod in known.pods]
    return of_pods + [(loop.name, loop.restarts, loop.last_exit) for loop in known.loops]


def _waiting_for(state: StateDir, known: PodsFile, number: int) -> str:
    """What is still missing, in words: pods that Envoy does not use yet, pods that still drain."""
    told = edge_told.read(state)
    ready = {(pod.host, pod.port) for pod in told.pods if pod.state == "ready"} if told.is_agreed else set()
    staying = [pod for pod in known.pods if not pod.is_leaving]
    coming = [pod.name for pod in staying if (pod.host, pod.port) not in ready]
    parts = [f"{len(staying)} of {_pods(number)} started"] if len(staying) < number else []
    parts += [f"waiting for {', '.join(coming)}"] if coming else []
    leaving = [pod.name for pod in known.pods if pod.is_leaving]
    parts += [f"{', '.join(leaving)} finish their requests"] if leaving else []
    return "; ".join(parts or ([] if len(staying) == number else ["waiting for the runner"]))


def _threads(state: StateDir, number: int) -> str:
    """What NUM_THREADS makes of that."""
    cores, fixed = len(os.sched_getaffinity(0)), again(state, os.environ).runner.num_threads
    if fixed:
        busy = "more threads than cores, which slows all of them" if fixed * number > cores else "no more than there are cores"
        return f"each computes with {fixed} threads (NUM_THREADS={fixed}), {fixed * number} together on {cores} cores: {busy}"
    share = max(1, cores // number)
    return (
        f"a pod that starts now computes with {share} of {cores} cores (NUM_THREADS=0 shares them); "
        "those from before keep their threads until `convoy restart pods`"
    )


def _pods(number: int) -> str:
    return "1 pod" if number == 1 else f"{number} pods"
