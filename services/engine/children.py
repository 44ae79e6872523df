"""Pod processes: how one is started (fork of the warmed runner, or exec of a new one), watched and ended. Parent side only."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from services.engine.backends import can_fork, preimport
from services.engine.environment import python_of
from services.engine.identity import start_ticks
from services.settings.reader import as_environment
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.settings import RunnerSettings

log = get_logger()

How = Literal["fork", "exec"]
_MAX_LOG_BYTES = 10 * 1024 * 1024


class Adopted(Struct, frozen=True, kw_only=True):
    """What a runner that replaces its own program hands on of a pod process, which stays its child.

    `started_at` is Unix time, to be shown; `begun_at` is on the monotonic clock, which all programs of a machine share.
    """

    pid: int
    port: int
    pipe: int
    started_at: float
    begun_at: float = 0.0
    state: str
    pending: str = ""


class Child:
    """A pod process of this runner: its pid, its port, and the pipe on which it beats."""

    def __init__(self, name: str, pid: int, port: int, pipe: int, process: subprocess.Popen[bytes] | None = None) -> None:
        """`process` is set for a pod that this program executed; any other is waited for by its pid."""
        self.name, self.pid, self.port, self.pipe = name, pid, port, pipe
        self.started_at, self.start_ticks = time.time(), start_ticks(pid)
        self.begun_at = self.heard_at = time.monotonic()
        self.state = ""
        self.failure = ""
        self.ended_for = ""
        self.killed_for = ""
        self._process = process
        self._pending = b""

    @classmethod
    def adopt(cls, name: str, known: Adopted) -> Child:
        """The same process, known to the program that took over."""
        os.set_inheritable(known.pipe, False)
        child = cls(name, known.pid, known.port, known.pipe)
        child.started_at, child.begun_at = known.started_at, known.begun_at
        child.state, child._pending = known.state, known.pending.encode()
        return child

    def hand_over(self) -> Adopted:
        """What `adopt` needs; its pipe survives the change of programs."""
        os.set_inheritable(self.pipe, True)
        pending = self._pending.decode(errors="replace")
        return Adopted(
            pid=self.pid,
            port=self.port,
            pipe=self.pipe,
            started_at=self.started_at,
            begun_at=self.begun_at,
            state=self.state,
            pending=pending,
        )

    def hear(self) -> None:
        """Reads what the pod said since the last call."""
        with suppress(BlockingIOError):
            while data := os.read(self.pipe, 4096):
                self._pending += data
        *lines, self._pending = self._pending.split(b"\n")
        for line in lines:
            self.heard_at = time.monotonic()
            word, _, rest = line.decode(errors="replace").partition(" ")
            self.state = word
            if word == "failed":
                self.failure = rest
            elif word == "ended":
                self.ended_for = rest

    def poll(self) -> int | None:
        """The exit code if the process has ended (negative: the signal that killed it), else None."""
        if self._process is not None:
            return self._process.poll()
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def send(self, number: signal.Signals) -> None:
        """Signals the process, if it is still there."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def last_words(self, code: int) -> str:
        """Why it ended, for people."""
        if self.killed_for:
            return self.killed_for
        if self.failure:
            return f"failed: {self.failure}"
        if self.ended_for:
            return f"exit code {code}: {self.ended_for}"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """Gives the pipe back."""
        os.close(self.pipe)


def start(settings: RunnerSettings, name: str, ports: Sequence[int], how: How) -> Child:
    """Starts a pod that listens on the first port of `ports` (0: any) that is free on POD_HOST. Raises `OSError` if none is."""
    listener = _listen(settings.pod_host, ports)
    hears, says = os.pipe()
    os.set_blocking(hears, False)
    try:
        launch = _fork if how == "fork" else _execute
        pid, process = launch(settings, name, listener, hears, says)
        return Child(name, pid, listener.getsockname()[1], hears, process)
    finally:
        os.close(says)
        listener.close()  # with it open here a dead pod's port would take connections that nobody answers


def _listen(host: str, ports: Sequence[int]) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for port in ports:
        with suppress(*[OSError] if port != ports[-1] else []):
            listener.bind((host, port))
            return listener
    raise AssertionError("the last port is taken, or says why not")


def _execute(settings: RunnerSettings, name: str, listener: socket.socket, _: int, says: int) -> tuple[int, subprocess.Popen[bytes]]:
    output = _open_log(settings, name)
    command = [sys.executable, "-m", "services.engine", "pod", name, str(listener.fileno()), str(says)]
    environment = os.environ | as_environment(settings)
    try:
        process = subprocess.Popen(command, pass_fds=(listener.fileno(), says), stdout=output, stderr=output, env=environment)
    finally:
        if output is not None:
            os.close(output)
    return process.pid, process


def _fork(settings: RunnerSettings, name: str, listener: socket.socket, hears: int, says: int) -> tuple[int, None]:
    _flush()
    pid = os.fork()
    if pid:
        return pid, None
    code = 70  # EX_SOFTWARE: something broke before the pod could say what
    try:
        os.close(hears)
        code = _in_child(settings, name, listener, says)
    finally:
        _flush()
        os._exit(code)  # not sys.exit: the runner's own cleanup must not happen twice


def _flush() -> None:
    """Writes what is buffered, if there is room: a full disk must keep no pod from starting, and no child from ending."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()


def _in_child(settings: RunnerSettings, name: str, listener: socket.socket, says: int) -> int:
    from services.engine.pod import run_pod  # noqa: PLC0415 - imported already; only the child needs the name

    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    output = _open_log(settings, name)
    if output is not None:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
    return run_pod(settings, name, listener, says)


def _open_log(settings: RunnerSettings, name: str) -> int | None:
    """The pod's own log file, so that it can still write when the runner is gone; None is the runner's output."""
    if not settings.pod_log_dir:
        return None
    path = Path(settings.pod_log_dir) / f"{name}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > _MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:  # as on a full disk: a pod that serves matters more than where it logs
        log.warning("pod.log_not_opened", pod=name, path=str(path), reason=str(error), logs_to="the runner's output")
        return None


def how_of(settings: RunnerSettings) -> How:
    """How pods with these settings start."""
    is_ours = python_of(settings.engine) == sys.executable
    return "fork" if settings.pod_start != "exec" and is_ours and can_fork(settings) else "exec"


def warm_up(settings: RunnerSettings) -> None:
    """Imports what every fork then has."""
    from services.engine import pod  # noqa: F401, PLC0415 - only a runner that forks needs it

    start = time.monotonic()
    preimport(settings)
    # What is here now lives as long as the pods: leave it out of their collections, which would copy its pages.
    gc.collect()
    gc.freeze()
    log.info("runner.imported", seconds=round(time.monotonic() - start, 1))


def threads_per_pod(settings: RunnerSettings, num_pods: int) -> int:
    """NUM_THREADS, or an equal share of the cores: threads beyond the cores cost a factor, not per cent."""
    return settings.num_threads or max(1, len(os.sched_getaffinity(0)) // num_pods)


def last_line(settings: RunnerSettings, name: str) -> str:
    """The last line of a pod's own log, as far as it has one: what a process that broke said last."""
    path = Path(settings.pod_log_dir) / f"{name}.log"
    if not settings.pod_log_dir or not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read(4096).decode(errors="replace").splitlines()
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")
