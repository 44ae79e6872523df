from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from supervisor.options import split_namespec

from services.ops.state import ROOT, StateDir
from services.ops.supervise import Options
from services.ops.supervisor_config import parent_command, render
from services.settings import EdgeSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

AWKWARD = ["plain", "with blank", "50%(here)s %d", "semi ;colon", "hash #tag", 'quote\'d "twice"', "größe", "back\\slash"]


@pytest.fixture(params=AWKWARD)
def state(request: pytest.FixtureRequest) -> Iterator[StateDir]:
    """A state folder whose name a configuration file may choke on."""
    base = Path(tempfile.mkdtemp(prefix="cv", dir="/tmp"))
    result = StateDir(base / request.param)
    result.create()
    yield result
    shutil.rmtree(base)


def read_back(state: StateDir, envoy: Path, drain_seconds: float = 30) -> Options:
    """What supervisord itself understands of the rendered file."""
    state.config.write_text(render(state, envoy, EdgeSettings(drain_timeout_seconds=drain_seconds)), encoding="utf-8")
    options = Options()
    before = Path.cwd()
    os.chdir(state.path)  # as the supervisor does
    try:
        options.realize(["--configuration", str(state.config)])
    finally:
        os.chdir(before)
    options.poller.close()
    return options


def programs(options: Options) -> dict[str, object]:
    """The program configurations by name."""
    return {split_namespec(group.name)[0]: group.process_configs[0] for group in options.process_group_configs}


def test_awkward_paths_reach_the_programs_unchanged(state: StateDir) -> None:
    """A checkout in a folder with blanks, per cent signs, quotes or comment marks starts like any other."""
    from supervisor.process import Subprocess

    envoy = state.path / "bin dir" / "envoy"
    envoy.parent.mkdir()
    envoy.write_text("#!/bin/sh\n")
    envoy.chmod(0o755)
    known = programs(read_back(state, envoy))
    program, arguments = Subprocess(known["envoy"]).get_execv_args()
    assert program == sys.executable
    assert list(arguments) == parent_command(state, envoy, EdgeSettings())
    assert Subprocess(known["runner"]).get_execv_args()[1] == [sys.executable, "-m", "services.engine"]


def test_logs_and_socket_lie_in_the_state_folder(state: StateDir) -> None:
    """Whatever the supervisor writes lies in the state folder, its pidfile too: it deletes that file at its end."""
    options = read_back(state, Path("/bin/true"))
    assert options.logfile == str(state.logs / "supervisor.log")
    assert Path(options.pidfile).parent == state.path
    assert {program.directory for program in programs(options).values()} == {str(ROOT)}  # type: ignore[attr-defined] # as below
    assert [config["file"] for config in options.server_configs] == [str(state.socket)]
    known = programs(options)
    assert known["envoy"].stdout_logfile == "logs/access.log"  # type: ignore[attr-defined] # supervisor has no annotations
    assert known["envoy"].stderr_logfile == "logs/envoy.log"  # type: ignore[attr-defined]
    assert known["edge"].stdout_logfile == "logs/edge.log"  # type: ignore[attr-defined]


def test_what_only_pods_may_know_is_kept_from_the_others(state: StateDir) -> None:
    """The upstream's key: the runner inherits it, Envoy and the edge do not; nothing of it is in the file."""
    known = programs(read_back(state, Path("/bin/true")))
    assert (known["edge"].environment["UPSTREAM_API_KEY"], known["envoy"].environment["UPSTREAM_API_KEY"]) == ("", "")  # type: ignore[attr-defined]
    assert "UPSTREAM_API_KEY" not in (known["runner"].environment or {})  # type: ignore[attr-defined]
    assert "UPSTREAM" not in state.config.read_text(encoding="utf-8")


def test_pods_drain_before_edge_and_envoy_stop() -> None:
    """Running requests finish at a stop: the runner stops first, with more time than its pods may take; Envoy stops last."""
    folder = Path(tempfile.mkdtemp(prefix="cv", dir="/tmp"))
    state = StateDir(folder)
    state.create()
    options = read_back(state, Path("/bin/true"), drain_seconds=77)
    stopped = [group.name for group in sorted(options.process_group_configs, key=lambda group: -group.priority)]
    runner = programs(options)["runner"]
    shutil.rmtree(folder)
    assert stopped == ["runner", "edge", "envoy"]
    assert runner.stopwaitsecs > 77  # type: ignore[attr-defined]
    assert runner.stopasgroup is False  # type: ignore[attr-defined]


def test_a_long_state_path_takes_a_short_socket() -> None:
    """A checkout deep in the file system starts too, though a Unix socket's path is short; two such checkouts do not share one."""
    first, second = StateDir(Path("/tmp") / ("deep/" * 30)), StateDir(Path("/tmp") / ("deeq/" * 30))
    assert len(str(first.socket)) < 95
    assert first.socket != second.socket


def test_two_checkouts_never_share_envoys_memory() -> None:
    """Envoy's base id differs by folder, is the same each time, and fits Envoy's 31 bits after its multiplication by ten."""
    ids = {StateDir(Path(f"/clone{number}/.convoy")).base_id for number in range(50)}
    assert len(ids) == 50
    assert max(ids) * 10 < 2**31
    assert StateDir(Path("/clone1/.convoy")).base_id in ids
