"""One Envoy process of several that may run at a time: how it is started, asked, and cut loose from the one before it.

In a hot restart the new Envoy takes the listening sockets over from the old one through datagram sockets in a folder. As long as it runs it
goes on sending to the old one's socket, and two things follow that nobody wants: if the old one dies early, the new one aborts; and a third
Envoy ends the first, whatever streams it has. So once the new one serves, a stand-in takes the old one's place: a socket to which it may
send, and which says nothing. The old one then depends on nobody, and its parent ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Envoy numbers its sockets by epoch modulo this.
_MAX_GENERATIONS = 3
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)

# In /proc/net/tcp: established, and half closed by the client, which still waits for its answer.
_OPEN_STATES = {"01", "08"}

_ASK_SECONDS = 0.5
_ORPHAN_SECONDS = 5.0
_VALIDATE_SECONDS = 30.0
_BAD_BOOTSTRAP = "error initializing configuration"
_MAX_REASON = 400


@dataclass(frozen=True)
class Launcher:
    """How Envoys of one stack are started."""

    command: Sequence[str]
    base_id: int
    sockets: Path
    admin_port: int
    parent_shutdown_seconds: int
    drain_seconds: int

    def start(self, epoch: int) -> Envoy:
        """Starts an Envoy: epoch 0 afresh, a later one as the successor of the one before."""
        if epoch == 0:
            self.sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in self.sockets.iterdir():
                left.unlink()
        process = subprocess.Popen([*self.command, *self._options(epoch)], stdin=subprocess.DEVNULL, preexec_fn=_die_with(os.getpid()))  # noqa: PLW1509 - this process has one thread
        return Envoy(process, epoch)

    def end_orphans(self) -> None:
        """Kills what a killed parent has left: an Envoy after a hot restart asks for SIGTERM instead of the SIGKILL of `_die_with`.

        It then waits for seconds for a stand-in that has died, too, and keeps the admin port.
        """
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while (orphans := self._orphans()) and time.monotonic() < deadline:
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _orphans(self) -> list[int]:
        mark = f"\0--socket-path\0{self.sockets / 's'}\0".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended
                if mark in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def refusal(self) -> str:
        """Why Envoy would not start on the bootstrap as it lies now, in its words; empty if it would."""
        command = [*self.command, "--mode", "validate", "--disable-hot-restart"]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_VALIDATE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return f"its configuration could not be checked in {_VALIDATE_SECONDS:g} s"
        if done.returncode == 0:
            return ""
        return _reason((done.stdout + done.stderr).decode(errors="replace").splitlines())

    def serves(self, envoy: Envoy) -> bool:
        """Whether `envoy` takes connections, and the one before it none any more."""
        told = self._ask("/server_info")
        if not told or json.loads(told)["command_line_options"]["restart_epoch"] != envoy.epoch:
            return False
        # Set in the same breath in which the Envoy before is told to drain; `state: LIVE` comes a moment earlier.
        return self._ask("/stats?filter=^server.live$").strip() == b"server.live: 1"

    def has_admin(self) -> bool:
        """Whether the admin port is answered."""
        return bool(self._ask("/server_info"))

    def cut_loose(self, envoy: Envoy, successor: Envoy) -> None:
        """Puts a stand-in where `successor` sends what it has to say to `envoy`: one message, which waits there unread."""
        place = self.sockets / f"s_parent_{self.base_id * 10 + envoy.epoch % _MAX_GENERATIONS}"
        place.unlink()
        successor.stand_in.bind(str(place))

    def _options(self, epoch: int) -> list[str]:
        own = ["--base-id", str(self.base_id), "--restart-epoch", str(epoch), "--socket-path", str(self.sockets / "s")]
        # A new Envoy would wait for the figures of the old one, for ever if that has died.
        own += ["--skip-hot-restart-parent-stats", "--parent-shutdown-time-s", str(self.parent_shutdown_seconds)]
        # Each answer of a draining Envoy closes its connection, so that clients move on with their next request.
        return [*own, "--drain-time-s", str(self.drain_seconds), "--drain-strategy", "immediate"]

    def _ask(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=_ASK_SECONDS)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return b""
        finally:
            connection.close()


@dataclass
class Envoy:
    """A running Envoy. Times are monotonic; `replaced_at` is set when it has been replaced."""

    process: subprocess.Popen[bytes]
    epoch: int
    started_at: float = field(default_factory=time.monotonic)
    replaced_at: float = 0
    stand_in: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def end(self) -> str:
        """How it ended, in words; empty while it runs."""
        code = self.process.poll()
        if code is None:
            return ""
        self.stand_in.close()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """Ends it at once and waits for that."""
        self.process.kill()
        self.process.wait()
        self.stand_in.close()

    def has_clients(self, port: int) -> bool:
        """Whether it holds connections that came in on `port`. Reads /proc; hot restarts exist on Linux only."""
        wanted = f"{port:04X}"
        connections = set()
        for table in ("tcp", "tcp6"):
            with contextlib.suppress(FileNotFoundError):  # no IPv6 here, or the process is gone
                rows = [row.split() for row in Path(f"/proc/{self.pid}/net/{table}").read_text().splitlines()[1:]]
                connections |= {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{wanted}") and row[3] in _OPEN_STATES}
        return not connections.isdisjoint(_open_files(self.pid))


def _open_files(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(FileNotFoundError):
        for number in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - thousands of names, no paths wanted
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.add(os.readlink(f"/proc/{pid}/fd/{number}"))  # noqa: PTH115 - its text, which is no path
    return found


def _die_with(parent: int) -> Callable[[], None]:
    """Runs in a new process before Envoy: it shall not outlive process `parent`, which alone could end it."""

    def prepare() -> None:
        if sys.platform == "linux" and _LIBC.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)):
            os._exit(1)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return prepare


def _reason(lines: Sequence[str]) -> str:
    """The line in which Envoy says what it does not like, without its head; shortened, for it may quote the whole file."""
    told = [json.loads(line)["event"] if line.startswith("{") else line for line in lines if line.strip()]
    chosen = next((line[line.index(_BAD_BOOTSTRAP) :] for line in told if _BAD_BOOTSTRAP in line), told[-1] if told else "no reason told")
    return chosen if len(chosen) <= _MAX_REASON else chosen[:_MAX_REASON] + " …"
