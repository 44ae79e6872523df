from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from services.ops import processes
from services.ops.processes import MARKER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SLEEP = "import signal, sys; print('up', flush=True); signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"

Spawn = "Callable[[str, dict[str, str]], subprocess.Popen[bytes]]"


@pytest.fixture
def spawn() -> Iterator[Callable[[str, dict[str, str]], subprocess.Popen[bytes]]]:
    """Starts Python code with more environment; whatever still lives is killed at the end."""
    children: list[subprocess.Popen[bytes]] = []

    def start(code: str, env: dict[str, str]) -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **env}, stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout
        assert child.stdout.readline() == b"up\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def test_only_processes_of_this_state_folder_are_ended(
    spawn: Callable[[str, dict[str, str]], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """Cleaning up after a killed run ends its processes, and neither another clone's nor somebody else's."""
    ours = spawn(SLEEP, {MARKER: str(tmp_path)})
    others = [spawn(SLEEP, {MARKER: f"{tmp_path}2"}), spawn(SLEEP, {"STATE_DIR": str(tmp_path)}), spawn(SLEEP, {})]
    assert [process.pid for process in processes.find(tmp_path)] == [ours.pid]
    assert len(processes.end_leftovers(tmp_path, grace_seconds=20)) == 1
    assert ours.wait(20) != 0
    assert [other.poll() for other in others] == [None, None, None]


def test_a_process_that_ignores_the_request_is_killed(
    spawn: Callable[[str, dict[str, str]], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """A leftover that does not listen to SIGTERM is gone all the same."""
    child = spawn(STUBBORN, {MARKER: str(tmp_path)})
    processes.end_leftovers(tmp_path, grace_seconds=0.1)
    assert child.wait(20) == -9
    assert processes.find(tmp_path) == []


def test_a_dead_child_nobody_reaped_counts_as_gone(spawn: Callable[[str, dict[str, str]], subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """A zombie is no leftover: `convoy down` does not wait for it."""
    child = spawn(SLEEP, {MARKER: str(tmp_path)})
    found = processes.find(tmp_path)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.wait_gone(found, 0) == []
    assert processes.find(tmp_path) == []
