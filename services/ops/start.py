"""Starts a stack: checks, spawns the supervisor, has Envoy's files rendered, and waits until a request through Envoy is answered.

Whatever stops a start is one `OpsError`, and nothing is left running.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from services.envoy_binary import envoy_binary
from services.files import write_atomically
from services.ops import begun, observability, probe, processes, supervisor_client, supervisor_config
from services.ops import plan as planning
from services.ops.state import PROGRAMS, ROOT, History, OpsError, Run
from services.ops.stop import end_now

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.ops.observability import Observability
    from services.ops.plan import Plan
    from services.ops.state import StateDir
    from services.pods_file import PodsFile

_POLL_SECONDS = 0.05

# A program that had to be started again so often before the stack was ready will not become well.
_MAX_EARLY_RESTARTS = 3


@dataclass
class Launch:
    """A stack that was just spawned: who it is, and the process that renders Envoy's files meanwhile."""

    run: Run
    supervisor: subprocess.Popen[bytes]
    render: subprocess.Popen[bytes]
    hint: str
    """What is missing and how to get it, in one line; empty if nothing is."""
    is_forwarding: bool = False


def running(state: StateDir) -> Run | None:
    """The run whose supervisor is alive in this state folder."""
    return state.run() if processes.supervisor(processes.find(state.path)) else None


def clean_up(state: StateDir) -> list[str]:
    """Ends what a killed run left behind and removes its files; returns what it ended."""
    ended = processes.end_leftovers(state.path, grace_seconds=2)
    state.clear()
    state.create()
    return ended


def launch(plan: Plan) -> Launch:
    """Checks the plan and starts its processes; the caller holds the state folder's lock."""
    planning.check_model(plan.runner)
    as_given, plan = begun.of(plan), planning.with_ports(plan)
    try:
        envoy = envoy_binary()
    except FileNotFoundError as error:
        raise OpsError(str(error)) from error
    watching = observability.arrange(plan)
    plan = plan.changed(OTEL_EXPORTER_OTLP_ENDPOINT=watching.otlp_endpoint)
    observability.write_files(plan.state, watching)
    text = supervisor_config.render(plan.state, envoy, plan.edge, watching.parts)
    write_atomically(plan.state.config, text.encode())
    supervisor = _spawn(plan, ["services.ops.supervise", str(plan.state.config)], "supervisor.log")
    try:
        render = _spawn(plan, ["services.edge", "render"], "edge.log")
        begun.write(plan.state, as_given)
        plan.state.write_run(run := _run(plan, supervisor.pid, watching))
    except BaseException:
        end_now(plan.state)
        raise
    return Launch(run, supervisor, render, watching.hint)


def wait_ready(state: StateDir, launched: Launch, tell: Callable[[str], None]) -> None:
    """Returns when a request through Envoy is answered by a ready pod and no pod is still loading; `tell` hears of the progress.

    Raises `OpsError` with the reason if that will not happen.
    """
    while True:
        _forward(state, launched)
        known = state.pods()
        problem = _problem(state, launched, known)
        if problem:
            raise OpsError(problem)
        waiting = _waiting_for(known, launched)
        # Envoy is asked beside the traffic first: answers of 503 to our own probes would count as failures that clients saw.
        if not waiting and probe.has_healthy_pod(launched.run.admin_port) and probe.is_ready(launched.run.url):
            return
        tell(waiting or "waiting for Envoy")
        time.sleep(_POLL_SECONDS)


def _spawn(plan: Plan, module: list[str], log: str) -> subprocess.Popen[bytes]:
    """Starts `python -m MODULE` in a session of its own, so that Ctrl-C in the terminal reaches `convoy` alone."""
    with (plan.state.logs / log).open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=ROOT,
            env=plan.env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def _run(plan: Plan, pid: int, watching: Observability) -> Run:
    edge, runner = plan.edge, plan.runner
    return Run(
        url=planning.url_of(edge.host, edge.port),
        host=edge.host,
        port=edge.port,
        admin_port=edge.admin_port,
        pid=pid,
        started_at=psutil.Process(pid).create_time(),
        engine=runner.engine,
        model_name=runner.model_name,
        pods=runner.pods,
        drain_timeout_seconds=runner.drain_timeout_seconds,
        parts={part.name: part.url for part in watching.parts},
    )


def _forward(state: StateDir, launched: Launch) -> None:
    """Has edge and Envoy started as soon as their files are rendered and the supervisor listens."""
    if launched.is_forwarding or launched.render.poll() != 0:
        return
    try:
        supervisor_client.start(state.socket, "edge")
        supervisor_client.start(state.socket, "envoy")
    except supervisor_client.SupervisorUnreachableError:
        return
    launched.is_forwarding = True


def _problem(state: StateDir, launched: Launch, known: PodsFile) -> str:
    histories = state.histories()
    if known.error:
        return known.error
    if launched.supervisor.poll() is not None:
        return (
            "stopped by `convoy down`" if launched.supervisor.returncode == 0 else f"the supervisor ended: {last_line(state, 'supervisor')}"
        )
    if launched.render.poll():
        return f"Envoy's files could not be rendered: {last_line(state, 'edge')}"
    for name in PROGRAMS:
        history = histories.get(name, History())
        if history.restarts >= _MAX_EARLY_RESTARTS or history.is_over:
            return state.pods().error or f"{name} cannot start ({history.last_exit}): {last_line(state, name)}"
    return ""


def _waiting_for(known: PodsFile, launched: Launch) -> str:
    """Which pods are still loading, in words; a pod that died before it was ready does not hold up the others."""
    if not known.pods:
        return "starting the runner"
    states = zip(known.pods, probe.readiness(known.pods), strict=True)
    loading = [(pod, said) for pod, said in states if said.state != "ready" and not pod.restarts]
    missing = launched.run.pods - len({pod.name for pod in known.pods} | {loop.name for loop in known.loops})
    texts = [f"{pod.name}: {said.progress or 'starting'}" for pod, said in loading]
    return ", ".join(texts + ([f"{missing} more pods to start"] if missing > 0 else []))


def last_line(state: StateDir, name: str) -> str:
    """The last line of a log that says something."""
    try:
        lines = (state.logs / f"{name}.log").read_text(errors="replace").split("\n")
    except FileNotFoundError:
        return "it left no log"
    return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty") + f" (log: {state.logs / name}.log)"
