"""The real `convoy` command on a state folder and ports of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from services.ops import processes
from services.ops.state import StateDir
from services.ops.status import gather
from services.ops.stop import end_now
from services.settings.reader import known_names
from tests.running import DEADLINE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LEFT_BEHIND = {"clients.yaml", "envoy.yaml", "keys", "logs", "prometheus", "xds"}
"""What `down` leaves in the state folder: logs, what Envoy last ran with, and what Prometheus keeps."""


class Convoy:
    """`convoy` as a test types it."""

    def __init__(self, state_dir: Path, **settings: str) -> None:
        """Settings that the caller's shell may have are left out."""
        own = {name: value for name, value in os.environ.items() if name not in known_names()}
        defaults = {"STATE_DIR": str(state_dir), "ENGINE": "fake", "PORT": "0", "DRAIN_TIMEOUT_SECONDS": "5", "OBSERVABILITY": "off"}
        defaults["CLIENTS_FILE"] = str(state_dir / "clients.yaml")
        self.state_dir = state_dir
        self.env = {**own, **defaults, **settings}

    def run(self, *arguments: str, text: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
        """Runs one command to its end."""
        return subprocess.run(
            self.command(*arguments), env={**self.env, **settings}, input=text, capture_output=True, text=True, timeout=100, check=False
        )

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts one command that stays."""
        return subprocess.Popen(
            self.command(*arguments), env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def command(self, *arguments: str) -> list[str]:
        """The command line."""
        return [sys.executable, "-m", "services.ops", *arguments]

    def status(self) -> dict[str, Any]:
        """What `convoy status --json` prints, without the second that starting the command takes; empty when nothing runs."""
        found = gather(StateDir(self.state_dir))
        told: dict[str, Any] = msgspec.to_builtins(found) if found else {}
        return told

    def ready(self) -> bool:
        """Whether all is well."""
        return bool(self.status().get("ready"))

    def row(self, name: str) -> dict[str, Any]:
        """One program or pod of the status."""
        told = self.status()
        return next((row for row in told.get("programs", []) + told.get("pods", []) if row["name"] == name), {})

    def answers(self) -> bool:
        """Whether a chat completion through Envoy succeeds now."""
        url = json.loads((self.state_dir / "run.json").read_text())["url"]
        body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}).encode()
        request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"content-type": "application/json"})  # noqa: S310 - loopback
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return bool(json.load(answer)["choices"])
        return False

    def assert_nothing_left(self) -> None:
        """No process, no socket, no file of a running stack."""
        assert [processes.describe(process) for process in processes.find(self.state_dir)] == []
        assert {path.name for path in self.state_dir.iterdir()} <= LEFT_BEHIND


@contextlib.contextmanager
def convoy(**settings: str) -> Iterator[Convoy]:
    """A `convoy` on a fresh state folder; whatever it left running at the end is killed."""
    state_dir = Path(tempfile.mkdtemp(prefix="cv", dir="/tmp"))
    try:
        yield Convoy(state_dir, **settings)
    finally:
        end_now(StateDir(state_dir))
        shutil.rmtree(state_dir, ignore_errors=True)


def until(condition: Callable[[], object], what: Callable[[], str]) -> None:
    """Waits until `condition` is true. It looks rarely: looking at a whole stack costs what the stack needs to start."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_SECONDS:g} s in vain: {what()}"
        time.sleep(0.2)
