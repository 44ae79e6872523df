"""What a start needs to know before anything runs: the merged environment, checked settings, free ports, a model that is there."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from services.ops.processes import MARKER
from services.ops.state import ROOT, OpsError, StateDir
from services.settings import EdgeSettings, OpsSettings, RunnerSettings, load, read_env_file

if TYPE_CHECKING:
    from collections.abc import Mapping

_FIRST_UNPRIVILEGED_PORT = 1024
_LAST_PORT = 65535


@dataclass(frozen=True)
class Plan:
    """A start that passed its checks. `env` is what every child process gets."""

    state: StateDir
    runner: RunnerSettings
    edge: EdgeSettings
    env: dict[str, str]


def read_plan(environ: Mapping[str, str] | None = None, root: Path = ROOT) -> Plan:
    """Reads `.env` under the process environment and validates every setting; raises `SettingsError`."""
    env = merge(os.environ if environ is None else environ, read_env_file(root / ".env"))
    load(OpsSettings, env)
    runner, edge = load(RunnerSettings, env), load(EdgeSettings, env)
    state = StateDir((root / Path(edge.state_dir).expanduser()).resolve())
    env |= {"STATE_DIR": str(state.path), "POD_LOG_DIR": str(state.logs), "PYTHONUNBUFFERED": "1", MARKER: str(state.path)}
    return Plan(state, runner, edge, env)


def merge(environ: Mapping[str, str], env_file: Mapping[str, str]) -> dict[str, str]:
    """The environment over the `.env` file; an empty variable counts as not given, as it does for the settings."""
    return {**env_file, **{name: value for name, value in environ.items() if value.strip() or name not in env_file}}


def with_ports(plan: Plan) -> Plan:
    """The plan with concrete, free ports; raises `OpsError` if one is taken."""
    port = free_port(plan.edge.host) if plan.edge.port == 0 else plan.edge.port
    admin = free_port("127.0.0.1", besides=port) if plan.edge.admin_port == 0 else plan.edge.admin_port
    if admin == port:
        raise OpsError(f"PORT and ADMIN_PORT are both {port}; leave ADMIN_PORT out, it then takes a free port")
    check_port("PORT", plan.edge.host, port)
    check_port("ADMIN_PORT", "127.0.0.1", admin)
    env = plan.env | {"PORT": str(port), "ADMIN_PORT": str(admin)}
    return Plan(plan.state, plan.runner, load(EdgeSettings, env), env)


def url_of(host: str, port: int) -> str:
    """The address that a client on this machine types."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://{host}:{port}"


def check_model(settings: RunnerSettings, root: Path = ROOT) -> None:
    """Raises `OpsError` if `MODEL_NAME` is `demo` or a path and the folder has no model; an id is looked up by the engine."""
    name = settings.model_name
    if settings.engine == "fake":
        return
    if name == "demo":
        if not any((root / "models" / "demo").rglob("*.safetensors")):
            raise OpsError(
                "MODEL_NAME=demo: models/demo has no weights; get them with `git checkout models/demo` or train them: make model"
            )
    elif name.startswith(("/", "./", "../", "~")) and not (root / Path(name).expanduser() / "config.json").is_file():
        path = root / Path(name).expanduser()
        what = "has no config.json" if path.is_dir() else "is no folder"
        raise OpsError(f"MODEL_NAME={name}: {path} {what}; give the folder of a model (config.json, *.safetensors) or `demo`")


def check_port(setting: str, host: str, port: int) -> None:
    """Raises `OpsError` unless `host:port` can be listened on. Envoy binds with SO_REUSEPORT and would share a taken port silently."""
    try:
        _bind(host, port)
    except OSError as error:
        raise OpsError(_port_problem(setting, host, port, error)) from error


def free_port(host: str, besides: int = 0) -> int:
    """A port of `host` that nobody listens on now."""
    try:
        port = _bind(host, 0)
    except OSError as error:
        raise OpsError(_port_problem("PORT", host, 0, error)) from error
    return port if port != besides else free_port(host, besides)


def _bind(host: str, port: int) -> int:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        bound: int = probe.getsockname()[1]
        return bound


def _port_problem(setting: str, host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        other = next((p for p in range(port + 10, _LAST_PORT) if _is_free(host, p)), 0)
        return f"{setting}={port} is taken{_holder(port)}; stop that, or choose another: {setting}={other} convoy up"
    if error.errno == errno.EACCES and port < _FIRST_UNPRIVILEGED_PORT:
        return f"{setting}={port} may only be used by root; choose one from {_FIRST_UNPRIVILEGED_PORT} to {_LAST_PORT}"
    return f"HOST={host} cannot be listened on ({error.strerror}); use 127.0.0.1, or an address of this machine"


def _is_free(host: str, port: int) -> bool:
    try:
        _bind(host, port)
    except OSError:
        return False
    return True


def _holder(port: int) -> str:
    try:
        connections = psutil.net_connections("tcp")
        pid = next((c.pid for c in connections if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid), None)
        return f" by {psutil.Process(pid).name()} (pid {pid})" if pid else ""
    except psutil.Error:
        return ""  # who holds it may be another user's secret
