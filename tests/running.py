"""A real runner with real pods, in a state folder and on ports of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_SECONDS = 60.0
"""How long a test waits for what should take a second or, where torch is imported, twenty: the machine may be busy."""


def until(condition: Callable[[], object], what: Callable[[], str], seconds: float = DEADLINE_SECONDS) -> None:
    """Waits until `condition` is true; fails with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {what()}"
        time.sleep(0.02)


def skip_without_vllm() -> None:
    """`make test` installs vLLM wherever there is a Python that it takes; elsewhere its tests cannot run."""
    import pytest  # not at the top: the bench uses this module where there is none

    if not (ROOT / ".venv-vllm" / "bin" / "python").exists():
        pytest.skip("vLLM is not installed: scripts/setup.sh vllm")


class RunningPods:
    """A runner and its pods as a test sees them."""

    def __init__(self, state_dir: Path, env: dict[str, str]) -> None:
        """Starts the runner; use `running_pods`, which also stops it."""
        self.state_dir = state_dir
        self._env = env
        self.process = self.start_runner()

    def start_runner(self) -> subprocess.Popen[bytes]:
        """Starts a (further) runner on the same state folder."""
        with (self.state_dir / "runner.log").open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "services.engine"], cwd=ROOT, env=self._env, stdout=log, stderr=log)
        return self.process

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The pods file's lines."""
        path = self.state_dir / "pods.json"
        pods: list[dict[str, Any]] = json.loads(path.read_text())["pods"] if path.exists() else []
        return pods

    def entry(self, name: str) -> dict[str, Any]:
        """The line of one pod, empty if there is none."""
        return next((entry for entry in self.entries if entry["name"] == name), {})

    @property
    def urls(self) -> list[str]:
        """Where the pods listen."""
        return [f"http://127.0.0.1:{entry['port']}" for entry in self.entries]

    @property
    def url(self) -> str:
        """Where the first pod listens."""
        return self.urls[0]

    def readiness(self, url: str) -> dict[str, Any]:
        """What `/readyz` says, empty if nobody answers."""
        try:
            with urllib.request.urlopen(url + "/readyz", timeout=5) as response:  # noqa: S310 - our own pod
                body = response.read()
        except urllib.error.HTTPError as error:
            body = error.read()
        except OSError:
            return {}
        told: dict[str, Any] = json.loads(body)
        return told

    def until_ready(self, count: int, seconds: float = DEADLINE_SECONDS) -> None:
        """Waits until exactly `count` pods are listed and ready."""

        def ready() -> bool:
            assert self.process.poll() is None, f"the runner ended: {self.log()}"
            urls = self.urls
            return len(urls) == count and all(self.readiness(url).get("state") == "ready" for url in urls)

        until(ready, lambda: f"{count} ready pods, have {self.entries}; {self.log()}", seconds)

    def log(self) -> str:
        """The end of the log."""
        return (self.state_dir / "runner.log").read_text()[-4000:]

    def stop(self) -> int:
        """Ends runner and pods without waiting for what runs; the runner's exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):  # the second signal means: at once; two of a kind may arrive as one
            if self.process.poll() is None:
                self.process.send_signal(number)
        try:
            return self.process.wait(DEADLINE_SECONDS)
        finally:
            for entry in self.entries:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(entry["pid"], signal.SIGKILL)


@contextlib.contextmanager
def running_pods(count: int = 1, **settings: object) -> Iterator[RunningPods]:
    """`count` pods of the fake engine (or of the one that `settings` name), ready; 0 waits for none."""
    with tempfile.TemporaryDirectory(prefix="convoy-", dir="/tmp") as folder:
        values = {"ENGINE": "fake", "PODS": count, "STATE_DIR": folder} | {name.upper(): value for name, value in settings.items()}
        pods = RunningPods(Path(folder), os.environ | {name: str(value) for name, value in values.items()})
        try:
            if count:
                pods.until_ready(count)
            yield pods
        finally:
            pods.stop()
