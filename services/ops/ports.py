"""Ports of this machine: which are free, and what to say of one that is not."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import psutil

from services.ops.state import OpsError

if TYPE_CHECKING:
    from collections.abc import Collection

_FIRST_UNPRIVILEGED_PORT = 1024
_LAST_PORT = 65535


def check_port(setting: str, host: str, port: int) -> None:
    """Raises `OpsError` unless `host:port` can be listened on. Envoy binds with SO_REUSEPORT and would share a taken port silently."""
    try:
        _bind(host, port)
    except OSError as error:
        raise OpsError(_port_problem(setting, host, port, error)) from error


def free_port(host: str, besides: Collection[int] = ()) -> int:
    """A port of `host` that nobody listens on now and that is not one of `besides`."""
    try:
        port = _bind(host, 0)
    except OSError as error:
        raise OpsError(_port_problem("PORT", host, 0, error)) from error
    return port if port not in besides else free_port(host, besides)


def _bind(host: str, port: int) -> int:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        bound: int = probe.getsockname()[1]
        return bound


def _port_problem(setting: str, host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        other = next((p for p in range(port + 10, _LAST_PORT) if is_free(host, p)), 0)
        return f"{setting}={port} is taken{_holder(port)}; stop that, or choose another: {setting}={other} convoy up"
    if error.errno == errno.EACCES and port < _FIRST_UNPRIVILEGED_PORT:
        return f"{setting}={port} may only be used by root; choose one from {_FIRST_UNPRIVILEGED_PORT} to {_LAST_PORT}"
    return f"HOST={host} cannot be listened on ({error.strerror}); use 127.0.0.1, or an address of this machine"


def is_free(host: str, port: int) -> bool:
    """Whether `host:port` can be listened on now."""
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
