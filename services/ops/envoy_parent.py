"""Envoy's parent: keeps one Envoy taking connections, replaces it without a pause, and lets replaced ones finish their streams.

The supervisor runs it as the program `envoy`; SIGHUP asks for a hot restart, SIGTERM and SIGINT end everything. An Envoy that dies is
started again at once, afresh; those that were replaced before go on, for they depend on nobody. Where Envoy cannot live, this process ends
with its exit code, and the supervisor's pauses begin. It imports the standard library alone: the stack waits for its start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import select
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from services.ops.envoy_process import Envoy, Launcher
from services.ops.envoy_record import EnvoyRecord

if TYPE_CHECKING:
    from types import FrameType

# One that lived for so long was well; one that dies earlier is not started again for ever.
_WELL_AFTER_SECONDS = 1.0
_MAX_QUICK_DEATHS = 3

# A new Envoy that does not serve by then will not.
_MAX_START_SECONDS = 30.0

_POLL_SECONDS = 0.05
_REPLACED_POLL_SECONDS = 1.0
_END_SECONDS = 5.0


class Signals:
    """Signals as a queue that can be waited for. SIGCHLD only ends the wait."""

    def __init__(self) -> None:
        """Catches them from now on."""
        self._reader, writer = socket.socketpair()
        self._reader.setblocking(False)
        writer.setblocking(False)
        self._writer = writer
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, _ignore)

    def wait(self, seconds: float | None) -> list[int]:
        """The signals that came, at the latest after `seconds`."""
        select.select([self._reader], [], [], seconds)
        try:
            return list(self._reader.recv(4096))  # a byte is a signal's number
        except BlockingIOError:
            return []


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """A handler there must be, or the signal would have its usual effect."""


class Parent:
    """The Envoys of one stack: the newest, which serves; perhaps one that is coming up to replace it; those replaced before."""

    def __init__(self, launcher: Launcher, state_dir: Path, port: int) -> None:
        """Starts the first Envoy. `port` is the clients'."""
        self._launcher, self._state_dir, self._port = launcher, state_dir, port
        self._record = EnvoyRecord.of_earlier_parent(state_dir)
        self._coming: Envoy | None = None
        self._replaced: list[Envoy] = []
        self._num_chances = 0
        launcher.end_orphans()
        self._newest = launcher.start(0)
        self._write(pid=self._newest.pid, started_at=time.time(), parent_shutdown_seconds=launcher.parent_shutdown_seconds)

    @property
    def pause(self) -> float | None:
        """How long nothing will happen but signals; None: for ever."""
        if self._coming:
            return _POLL_SECONDS
        return _REPLACED_POLL_SECONDS if self._replaced else None

    def replace(self) -> None:
        """Begins a hot restart, if Envoy would start on what its bootstrap says now."""
        if self._coming:
            return  # the outcome of the one under way answers both
        reason = self._launcher.refusal()
        if reason:
            self._refuse(reason)
        else:
            self._coming = self._launcher.start(self._newest.epoch + 1)

    def look(self) -> int | None:
        """Acts on what has become of each Envoy; the exit code if it is time to give up."""
        self._look_at_replaced()
        if end := self._newest.end:
            return self._start_afresh(end)
        if self._coming:
            self._look_at_coming(self._coming)
        return None

    def end(self) -> None:
        """Ends every Envoy."""
        envoys = [*self._replaced, *filter(None, [self._coming]), self._newest]
        for envoy in envoys:
            envoy.process.terminate()
        deadline = time.monotonic() + _END_SECONDS
        for envoy in envoys:
            with contextlib.suppress(subprocess.TimeoutExpired):
                envoy.process.wait(max(0, deadline - time.monotonic()))
            envoy.kill()

    def _look_at_coming(self, coming: Envoy) -> None:
        late = time.monotonic() - coming.started_at > _MAX_START_SECONDS
        if end := coming.end:
            self._drop_coming(f"the new Envoy ended at its start ({end}), see its log")
        elif self._launcher.serves(coming):
            self._take_over(coming)
        elif late:
            self._drop_coming(f"the new Envoy did not serve within {_MAX_START_SECONDS:g} s")

    def _take_over(self, coming: Envoy) -> None:
        old, self._newest, self._coming = self._newest, coming, None
        self._launcher.cut_loose(old, coming)
        old.replaced_at = time.monotonic()
        self._replaced.append(old)
        self._num_chances = _MAX_QUICK_DEATHS
        answered = self._record.answered + 1
        self._write(pid=coming.pid, epoch=coming.epoch, started_at=time.time(), answered=answered, refusal="")
        _log("info", f"hot restart: epoch {coming.epoch} (pid {coming.pid}) serves, pid {old.pid} finishes its streams")

    def _drop_coming(self, reason: str) -> None:
        if self._coming:
            self._coming.kill()
            self._coming = None
            has_admin = self._launcher.has_admin()
            self._refuse(reason if has_admin else f"{reason}; the old Envoy has closed its admin port and waits for another restart")

    def _refuse(self, reason: str) -> None:
        self._write(answered=self._record.answered + 1, refusal=reason)
        _log("error", f"hot restart failed, pid {self._newest.pid} serves on: {reason}")

    def _start_afresh(self, end: str) -> int | None:
        code = self._newest.process.returncode
        self._drop_coming(f"Envoy died meanwhile ({end})")  # without the old one it would wait for ever
        if time.monotonic() - self._newest.started_at >= _WELL_AFTER_SECONDS:
            self._num_chances = _MAX_QUICK_DEATHS
        if not self._num_chances:
            self._write(pid=0, last_exit=end)
            return 128 - code if code < 0 else code or 1
        self._num_chances -= 1
        pid, self._newest = self._newest.pid, self._launcher.start(0)
        self._write(pid=self._newest.pid, epoch=0, started_at=time.time(), restarts=self._record.restarts + 1, last_exit=end)
        _log("error", f"pid {pid} died ({end}), pid {self._newest.pid} takes its place")
        return None

    def _look_at_replaced(self) -> None:
        for envoy in list(self._replaced):
            since = time.monotonic() - envoy.replaced_at
            if end := envoy.end:
                self._replaced.remove(envoy)
                self._write()
                _log("info", f"replaced pid {envoy.pid} is gone ({end})")
            elif since > self._launcher.parent_shutdown_seconds + _END_SECONDS:
                envoy.process.kill()
            # In the first moments it may still accept what had come before.
            elif since > self._launcher.parent_shutdown_seconds or (since > _REPLACED_POLL_SECONDS and not envoy.has_clients(self._port)):
                envoy.process.terminate()

    def _write(self, **changes: float | str) -> None:
        self._record = dataclasses.replace(self._record, **changes, replaced=tuple(envoy.pid for envoy in self._replaced))  # type: ignore[arg-type] # names and types are the record's
        self._record.write(self._state_dir)


def _log(level: str, event: str) -> None:
    """A line among Envoy's own, in their form."""
    at = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {"ts": at, "level": level, "service": "envoy", "logger": "parent", "event": event}
    print(json.dumps(line), file=sys.stderr, flush=True)  # noqa: T201 - Envoy's log


def main() -> None:
    """STATE_DIR SOCKETS BASE_ID PORT ADMIN_PORT DRAIN_SECONDS PARENT_SHUTDOWN_SECONDS COMMAND…, as `supervisor_config` writes it."""
    state_dir, sockets, *numbers = sys.argv[1:8]
    base_id, port, admin_port, drain, shutdown = map(int, numbers)
    signals = Signals()
    launcher = Launcher(sys.argv[8:], base_id, Path(sockets), admin_port, parent_shutdown_seconds=shutdown, drain_seconds=drain)
    parent = Parent(launcher, Path(state_dir), port)
    code = None
    while code is None:
        came = signals.wait(parent.pause)
        if signal.SIGTERM in came or signal.SIGINT in came:
            code = 0
            break
        if signal.SIGHUP in came:
            parent.replace()
        code = parent.look()
    parent.end()
    sys.exit(code)


if __name__ == "__main__":
    main()
