"""Talks to the running supervisor over its socket."""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING, Any
from xmlrpc.client import Error, Fault, ServerProxy

from msgspec import Struct
from supervisor.xmlrpc import SupervisorTransport

if TYPE_CHECKING:
    from pathlib import Path


class Program(Struct, frozen=True):
    """A supervised program: `state` in lower case (running, backoff, stopping, stopped, exited, fatal), times in unix seconds."""

    name: str
    state: str
    pid: int
    started_at: float


class SupervisorUnreachableError(Exception):
    """Nobody answers on the supervisor's socket (not yet, or no more)."""


def programs(socket: Path) -> dict[str, Program]:
    """The supervised programs by name; raises `SupervisorUnreachableError`."""
    answer = _call(socket, "getAllProcessInfo")
    return {row["name"]: Program(row["name"], _state(row), row["pid"], row["start"]) for row in answer}


def start(socket: Path, name: str) -> None:
    """Starts a program without waiting for it; one that runs already stays as it is. Raises `SupervisorUnreachableError`."""
    _call(socket, "startProcess", name, False)


def stop(socket: Path, name: str) -> None:
    """Stops a program and waits for its end; it stays stopped. Raises `SupervisorUnreachableError`."""
    _call(socket, "stopProcess", name)


def send_signal(socket: Path, name: str, signal: str) -> None:
    """Sends a program a signal (`HUP`). Raises `SupervisorUnreachableError`, also if it does not run."""
    _call(socket, "signalProcess", name, signal)


def _state(row: dict[str, Any]) -> str:
    # The supervisor calls the first second of a program its start; it runs then, and readiness is asked of the program itself.
    state: str = row["statename"].lower()
    return "running" if state == "starting" and row["pid"] else state


def _call(socket: Path, method: str, *arguments: object) -> Any:
    transport: Any = SupervisorTransport(None, None, f"unix://{socket}")
    try:
        # The address is a placeholder: the transport goes to the socket.
        return getattr(ServerProxy("http://127.0.0.1", transport=transport).supervisor, method)(*arguments)
    except Fault as fault:
        if "ALREADY_STARTED" in fault.faultString:
            return None
        raise SupervisorUnreachableError(fault.faultString) from fault
    except (OSError, http.client.HTTPException, Error) as error:
        raise SupervisorUnreachableError(str(error)) from error
    finally:
        transport.close()
