"""How a runner becomes its successor: new settings and code are tried first, then this process runs the new program in its own place.

The process id stays, so that whoever supervises it notices nothing, and the pods stay its children: they are known to the new program by
what is handed on here, with the pipes on which they beat.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import NoReturn

import msgspec
from msgspec import Struct

from services.engine.backends import check_model, preimport
from services.engine.generation import BackendError
from services.engine.places import PlaceRecord
from services.pods_wanted import Restart
from services.settings import RunnerSettings
from services.settings.reader import as_environment

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SIGNALS = (*STOP_SIGNALS, signal.SIGCHLD, signal.SIGUSR1)
_MODULE = [sys.executable, "-m", "services.engine"]


class Inheritance(Struct, frozen=True, kw_only=True):
    """What the old program leaves: the restart that is asked for, the settings of before it, and all pods."""

    asked: Restart
    before: RunnerSettings
    number: int
    places: tuple[PlaceRecord, ...]


class Trial:
    """A process that loads the new settings with the new code, looks for the model, and imports what pods import."""

    def __init__(self, asked: Restart, running: RunnerSettings) -> None:
        """Starts it. `running`: the settings that are in force."""
        self.asked = asked
        self._end_at = time.monotonic() + asked.limit_seconds
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the trial lasts
        environment = _environment(asked, running)
        self._process = subprocess.Popen(
            [*_MODULE, "check"], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._errors
        )

    def outcome(self) -> str | None:
        """None while it runs; then why no pod would start, empty if one would."""
        code = self._process.poll()
        if code is None and time.monotonic() > self._end_at:
            self.end()
            return f"trying settings and code took more than {self.asked.limit_seconds:g} s"
        if code is None:
            return None
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        self._errors.close()
        return (lines[-1].removeprefix("engine: ")[:500] if lines else f"the check ended with exit code {code}") if code else ""

    def end(self) -> None:
        """Its outcome is no longer wanted."""
        self._process.kill()
        self._process.wait()
        self._errors.close()


def succeed(left: Inheritance) -> NoReturn:
    """Runs the new program in this process. Signals wait until it listens; raises `OSError` if it cannot be run."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    with tempfile.TemporaryFile() as file:
        file.write(msgspec.json.encode(left))
        file.flush()
        os.set_inheritable(file.fileno(), True)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [*_MODULE, "succeed", str(file.fileno())], _environment(left.asked, left.before))  # noqa: S606 - our own program


def _environment(asked: Restart, running: RunnerSettings) -> dict[str, str]:
    """A program that was followed by one whose settings failed has those in its environment, so it does not count."""
    return os.environ | as_environment(running) | asked.settings


def check(settings: RunnerSettings) -> int:
    """What a trial runs: 0 if pods with these settings would start, as far as that can be known without one."""
    try:
        check_model(settings)
    except BackendError as error:
        print(f"engine: {error}", file=sys.stderr)  # noqa: T201 - read by the runner
        return 1
    preimport(settings)
    return 0


def inherit(descriptor: int) -> Inheritance | None:
    """What `succeed` left; None if the program before was of another kind: its pods are orphans then."""
    with suppress(msgspec.DecodeError), os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        return msgspec.json.decode(file.read(), type=Inheritance)
    return None
