"""The supervisor's configuration as text: which programs it keeps running, in which order they stop, where they log."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from services.ops.observability import Part
    from services.ops.state import StateDir
    from services.settings import EdgeSettings

# A pod may use its whole drain time; the runner then needs a moment of its own before it is killed.
_STOP_MARGIN_SECONDS = 10

_HEAD = """\
; Written by `convoy up`. Paths are relative to this file's folder, where the supervisor runs; its programs run in the checkout.
; The supervisor deletes its pidfile when it ends.
[supervisord]
nodaemon=true
silent=true
logfile=logs/supervisor.log
logfile_maxbytes=10MB
logfile_backups=1
pidfile=supervisord.pid
nocleanup=true

[unix_http_server]
file={socket}
chmod=0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""

_PROGRAM = """
[program:{name}]
command={command}
priority={priority}
stdout_logfile=logs/{stdout}
stdout_logfile_maxbytes=50MB
stdout_logfile_backups=2
{stderr}
killasgroup=true
{policy}
"""

# Ends 0 and 1 of the runner are final: told to stop, or the model cannot be loaded. startsecs=0, or an early end would count as a failed
# start whatever its code. Only the runner itself is told to stop (no stopasgroup): it passes the signal on, and a pod that heard it twice
# would stop without draining.
_RUNNER_POLICY = "autorestart=unexpected\nexitcodes=0,1\nstartsecs=0\nstopwaitsecs={stop_seconds}"

# One that runs is started again at once; one that cannot start is tried with a pause that grows by a second each time.
_ALWAYS_POLICY = "autostart=false\nautorestart=true\nstartsecs=1\nstartretries=30\nstopwaitsecs=10"


# How long an Envoy that was replaced counts as draining. Each answer closes its connection from the first moment on, so little hangs on it.
_DRAIN_SECONDS = 10

# A part that watches may fail as often as it likes: the others go on.
_PART_POLICY = "autorestart=true\nstartsecs=1\nstartretries=1000\nstopwaitsecs=10"


def render(state: StateDir, envoy: Path, settings: EdgeSettings, parts: Sequence[Part] = ()) -> str:
    """The configuration file. Higher priority stops first: pods drain while edge and Envoy still forward, what watches them goes last."""
    inside = state.socket.parent == state.path
    text = _HEAD.replace("{socket}", "supervisor.sock" if inside else escape(str(state.socket)))
    python = sys.executable
    runner_policy = _RUNNER_POLICY.format(stop_seconds=int(settings.drain_timeout_seconds) + _STOP_MARGIN_SECONDS)
    text += _program("runner", [python, "-m", "services.engine"], 30, runner_policy)
    text += _program("edge", [python, "-m", "services.edge", "run"], 20, _ALWAYS_POLICY)
    # Envoys write their access log to stdout and their own log to stderr, both of which their parent hands on.
    text += _program("envoy", parent_command(state, envoy, settings), 10, _ALWAYS_POLICY, stdout="access.log", stderr="envoy.log")
    for part in parts:
        environment = ",".join(f'{name}="{escape(value)}"' for name, value in part.env.items())
        text += _program(part.name, part.command, part.priority, _PART_POLICY + (f"\nenvironment={environment}" if environment else ""))
    return text


def parent_command(state: StateDir, envoy: Path, settings: EdgeSettings) -> list[str]:
    """How Envoy's parent is started."""
    numbers = [state.base_id, settings.port, settings.admin_port, _DRAIN_SECONDS, settings.envoy_parent_shutdown_seconds]
    arguments = [str(state.path), str(state.envoy_sockets), *map(str, numbers), *envoy_command(state, envoy)]
    return [sys.executable, "-m", "services.ops.envoy_parent", *arguments]


def envoy_command(state: StateDir, envoy: Path) -> list[str]:
    """How Envoy is started. One worker serves far more than the pods behind it, and keeps its limits and breakers exact.

    The access log is written each second: by default a request would be 10 s old before `convoy logs` and `convoy trace` knew of it.
    """
    bootstrap = str(state.path / "envoy.yaml")
    options = ["--concurrency", "1", "--log-level", "info", "--file-flush-interval-msec", "1000"]
    return [str(envoy), "-c", bootstrap, *options]


def escape(value: str) -> str:
    """Doubles `%`, which the supervisor would expand."""
    return value.replace("%", "%%")


def quote(words: Sequence[str]) -> str:
    """A command line that the supervisor splits into exactly `words`; it takes a blank before `;` or `#` for a comment's beginning."""
    line = shlex.join(words)
    for mark in ";#":
        line = line.replace(f" {mark}", f" ''{mark}")  # shlex put the word in quotes: this ends them and begins new ones
    return escape(line)


def _program(  # noqa: PLR0913 - one argument per line of the template
    name: str, command: Sequence[str], priority: int, policy: str, *, stdout: str = "", stderr: str = ""
) -> str:
    errors = f"stderr_logfile=logs/{stderr}\nstderr_logfile_maxbytes=10MB\nstderr_logfile_backups=2" if stderr else "redirect_stderr=true"
    return _PROGRAM.format(
        name=name, command=quote(command), priority=priority, stdout=stdout or f"{name}.log", stderr=errors, policy=policy
    )
