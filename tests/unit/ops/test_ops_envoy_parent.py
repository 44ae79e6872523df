"""Envoy's parent with a stand-in for Envoy: how both end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import psutil
import pytest

from services.ops import processes
from services.ops.envoy_record import EnvoyRecord
from services.ops.state import ROOT, History, StateDir
from tests.running import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLEEPS = "import signal; signal.pause()"


class Parent:
    """The real parent, whose Envoy is a line of Python."""

    def __init__(self, folder: Path, code: str) -> None:
        """Starts it."""
        self.state = StateDir(folder)
        arguments = [folder, folder / "envoy", 1, 1, 1, 1, 1, sys.executable, "-c", code]
        command = [sys.executable, "-m", "services.ops.envoy_parent", *map(str, arguments)]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)

    def envoy(self) -> psutil.Process:
        """The process that it has started."""
        until(lambda: self.state.envoy().pid, lambda: "a record of the first process")
        return psutil.Process(self.state.envoy().pid)


@pytest.fixture
def sleeping(tmp_path: Path) -> Iterator[Parent]:
    """A parent whose Envoy lives until it is told otherwise."""
    parent = Parent(tmp_path, SLEEPS)
    yield parent
    parent.process.kill()
    parent.process.communicate()


def test_one_that_cannot_live_ends_its_parent_with_its_code(tmp_path: Path) -> None:
    """The supervisor then makes its pauses, and shows the code; nothing stands in the log behind Envoy's own last words."""
    parent = Parent(tmp_path, "import sys; print('no such port', file=sys.stderr); sys.exit(7)")
    _, errors = parent.process.communicate(timeout=60)
    assert (parent.process.returncode, errors) == (7, b"no such port\n")
    assert (parent.state.envoy().pid, parent.state.envoy().last_exit) == (0, "exit code 7")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_parent_that_is_told_to_stop_ends_its_envoy(sleeping: Parent, number: signal.Signals) -> None:
    """And says that all went well."""
    envoy = sleeping.envoy()
    sleeping.process.send_signal(number)
    assert sleeping.process.wait(60) == 0
    assert not processes.is_alive(envoy)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_no_envoy_outlives_its_parent(sleeping: Parent) -> None:
    """An orphan would hold ports and sockets that nobody could take from it."""
    envoy = sleeping.envoy()
    sleeping.process.kill()
    assert processes.wait_gone([envoy], 30) == []


def test_restarts_are_those_by_both_parents(tmp_path: Path) -> None:
    """`status` counts Envoy's restarts by its parent and the parent's by the supervisor, and tells the last end."""
    state = StateDir(tmp_path)
    (tmp_path / "programs.json").write_bytes(msgspec.json.encode({"envoy": History(2, "killed by SIGKILL"), "edge": History(1, "x")}))
    assert state.histories() == {"envoy": History(2, "killed by SIGKILL"), "edge": History(1, "x")}
    EnvoyRecord(pid=7, restarts=3, last_exit="killed by SIGSEGV").write(tmp_path)
    assert state.histories()["envoy"] == History(5, "killed by SIGSEGV")
    assert EnvoyRecord.of_earlier_parent(tmp_path) == EnvoyRecord(restarts=3), "the supervisor knows how that parent ended"
    EnvoyRecord(pid=0, restarts=3, last_exit="exit code 1").write(tmp_path)
    assert EnvoyRecord.of_earlier_parent(tmp_path).last_exit == "exit code 1", "the parent ended because Envoy did"


def test_the_parent_starts_without_the_packages_that_are_slow_to_import() -> None:
    """A stack that starts, and one whose parent was killed, wait for it."""
    code = "import json, sys; import services.ops.envoy_parent; print(json.dumps(list(sys.modules)))"
    names = json.loads(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout)
    assert {"msgspec", "typer", "psutil", "asyncio"} & {name.partition(".")[0] for name in names} == set()
