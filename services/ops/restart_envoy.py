"""`convoy restart envoy`: a new Envoy takes over from the running one, and what came of that is told."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import msgspec
import psutil

from services.ops import begun, probe, supervisor_client
from services.ops.state import OpsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.ops.envoy_record import EnvoyRecord
    from services.ops.state import Run, StateDir

_POLL_SECONDS = 0.05

# Above the time that Envoy's parent gives the new one.
_MAX_WAIT_SECONDS = 75.0


class _Options(msgspec.Struct, frozen=True):
    restart_epoch: int = 0


class _ServerInfo(msgspec.Struct, frozen=True):
    """What Envoy says of itself; `state` is LIVE once it serves."""

    state: str = ""
    command_line_options: _Options = _Options()


def restart_envoy(state: StateDir, run: Run) -> str:
    """Replaces Envoy; what came of it, in words. Raises `OpsError` with the reason if the old process serves on."""
    if sys.platform != "linux":
        raise OpsError("Envoy can be replaced while it serves on Linux only; use `convoy down` and `convoy up`")
    began = time.monotonic()
    envoy = _replace(state, run)
    begun.note_restart(state)
    return (
        f"Envoy was replaced in {time.monotonic() - began:.1f} s without a pause: epoch {envoy.epoch} (pid {envoy.pid}) serves; "
        f"streams that the one before has begun go on, for {envoy.parent_shutdown_seconds} s at most"
    )


def _replace(state: StateDir, run: Run) -> EnvoyRecord:
    before = state.envoy()
    try:
        parent = supervisor_client.programs(state.socket)["envoy"].pid
        supervisor_client.send_signal(state.socket, "envoy", "HUP")
    except supervisor_client.SupervisorUnreachableError as error:
        raise OpsError(f"Envoy does not run ({error}); see `convoy status`") from error

    def is_answered() -> bool:
        if not psutil.pid_exists(parent):
            raise OpsError(f"Envoy was not replaced: its parent ended meanwhile (log: {state.logs / 'envoy.log'}); see `convoy status`")
        return state.envoy().answered > before.answered

    _until(is_answered, state)
    envoy = state.envoy()
    if envoy.refusal:
        raise OpsError(f"Envoy was not replaced, the one before serves on: {envoy.refusal} (log: {state.logs / 'envoy.log'})")
    _until(lambda: _info(run) == _ServerInfo("LIVE", _Options(envoy.epoch)), state)
    return envoy


def _until(condition: Callable[[], bool], state: StateDir) -> None:
    deadline = time.monotonic() + _MAX_WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise OpsError(f"no new Envoy serves after {_MAX_WAIT_SECONDS:g} s; see `convoy status` and {state.logs / 'envoy.log'}")
        time.sleep(_POLL_SECONDS)


def _info(run: Run) -> _ServerInfo:
    try:
        return msgspec.json.decode(probe.get("127.0.0.1", run.admin_port, "/server_info")[1], type=_ServerInfo)
    except msgspec.DecodeError:
        return _ServerInfo()
