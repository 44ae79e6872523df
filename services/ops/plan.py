"""What a start needs to know before anything runs: the merged environment, checked settings, free ports, a model that is there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from services.ops.ports import check_port, free_port
from services.ops.processes import MARKER
from services.ops.state import ROOT, OpsError, StateDir
from services.settings import (
    CommonSettings,
    EdgeSettings,
    OpsSettings,
    RunnerSettings,
    env_file_of,
    load,
    read_env_file,
    told_about,
    withheld_names,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

# Where `make` keeps its command line, on which a key may stand.
_OF_MAKE = ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS")


@dataclass(frozen=True)
class Plan:
    """A start that passed its checks. `env` is what every child process gets."""

    state: StateDir
    runner: RunnerSettings
    edge: EdgeSettings
    ops: OpsSettings
    env: dict[str, str]
    env_file: Path = ROOT / ".env"

    def changed(self, **variables: str) -> Plan:
        """The plan with other values of some variables."""
        env = self.env | variables
        return Plan(self.state, load(RunnerSettings, env), load(EdgeSettings, env), self.ops, env, self.env_file)


def read_plan(environ: Mapping[str, str] | None = None, root: Path = ROOT) -> Plan:
    """Reads `.env` under the process environment and validates every setting; raises `SettingsError`."""
    shell = os.environ if environ is None else environ
    env_file = env_file_for(shell, root)
    env = merge(shell, read_env_file(env_file))
    runner, edge, ops = load(RunnerSettings, env), load(EdgeSettings, env), load(OpsSettings, env)
    state = StateDir((root / Path(edge.state_dir).expanduser()).resolve())
    env |= {"STATE_DIR": str(state.path), "POD_LOG_DIR": str(state.logs), "PYTHONUNBUFFERED": "1", MARKER: str(state.path)}
    env |= told_about(env_file, shell)
    for name in (*withheld_names(), *_OF_MAKE):
        env.pop(name, None)
    return Plan(state, runner, edge, ops, env, env_file)


def env_file_for(environ: Mapping[str, str], root: Path = ROOT) -> Path:
    """The `.env` of the checkout; or the file that CONVOY_ENV_FILE names."""
    return root / (env_file_of(environ) or ".env")


def find_state(environ: Mapping[str, str] | None = None, root: Path = ROOT) -> StateDir:
    """The state folder, whatever else is wrong with `.env`: who looks at a running stack, or stops it, needs no more."""
    shell = os.environ if environ is None else environ
    env = merge(shell, read_env_file(env_file_for(shell, root), is_strict=False))
    settings = load(CommonSettings, {"STATE_DIR": env.get("STATE_DIR", "")})
    return StateDir((root / Path(settings.state_dir).expanduser()).resolve())


def merge(environ: Mapping[str, str], env_file: Mapping[str, str]) -> dict[str, str]:
    """The environment over the `.env` file; an empty variable counts as not given, as it does for the settings."""
    return {**env_file, **{name: value for name, value in environ.items() if value.strip() or name not in env_file}}


def with_ports(plan: Plan) -> Plan:
    """The plan with concrete, free ports; raises `OpsError` if one is taken."""
    port = free_port(plan.edge.host) if plan.edge.port == 0 else plan.edge.port
    admin = free_port("127.0.0.1", [port]) if plan.edge.admin_port == 0 else plan.edge.admin_port
    if admin == port:
        raise OpsError(f"PORT and ADMIN_PORT are both {port}; leave ADMIN_PORT out, it then takes a free port")
    check_port("PORT", plan.edge.host, port)
    check_port("ADMIN_PORT", "127.0.0.1", admin)
    return plan.changed(PORT=str(port), ADMIN_PORT=str(admin))


def url_of(host: str, port: int) -> str:
    """The address that a client on this machine types."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://{host}:{port}"


def check_model(settings: RunnerSettings, root: Path = ROOT) -> None:
    """Raises `OpsError` if `MODEL_NAME` is `demo` or a path and the folder has no model; an id is looked up by the engine."""
    name = settings.model_name
    if settings.engine in {"fake", "remote"}:
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
