from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from services.ops.plan import check_model, merge, read_plan, url_of, with_ports
from services.ops.ports import check_port, free_port
from services.ops.processes import MARKER
from services.ops.state import OpsError
from services.settings import RunnerSettings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port of loopback on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_environment_wins_over_the_env_file() -> None:
    """`PORT=8010 make up` holds although .env names another port; an empty variable does not hide the file's."""
    merged = merge({"PORT": "8010", "PODS": "", "HOME": "/h"}, {"PORT": "1", "PODS": "4", "ENGINE": "fake"})
    assert merged == {"PORT": "8010", "PODS": "4", "ENGINE": "fake", "HOME": "/h"}


def test_the_env_file_is_read_and_children_get_whole_paths(tmp_path: Path) -> None:
    """A setting in .env counts, and every process is told the same state folder, wherever it is started."""
    (tmp_path / ".env").write_text("PODS=3\nSTATE_DIR=run time\n")
    plan = read_plan({}, tmp_path)
    assert plan.runner.pods == 3
    assert plan.env["STATE_DIR"] == str(tmp_path / "run time") == plan.env[MARKER]
    assert plan.env["POD_LOG_DIR"] == str(tmp_path / "run time" / "logs")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("PORTT=1", "did you mean PORT"),
        ("PODS=none", "PODS=none: must be"),
        ("TORCH_BACKEND=rocm", "one of default, cpu"),
        ("PORT=70000", "PORT=70000"),
    ],
)
def test_a_bad_setting_stops_before_anything_runs(tmp_path: Path, text: str, reason: str) -> None:
    """A misspelt or impossible setting in .env is one line that says what is allowed, whichever process it is meant for."""
    (tmp_path / ".env").write_text(text)
    with pytest.raises(SettingsError, match=reason):
        read_plan({}, tmp_path)


def test_a_taken_port_names_its_holder_and_a_free_one(taken_port: int) -> None:
    """The line says who holds the port and what to type instead."""
    with pytest.raises(OpsError) as caught:
        check_port("PORT", "127.0.0.1", taken_port)
    line = str(caught.value)
    assert f"PORT={taken_port} is taken by " in line
    assert f"(pid {os.getpid()})" in line
    offered = int(line.split("choose another: PORT=")[1].split(maxsplit=1)[0])
    check_port("PORT", "127.0.0.1", offered)


def test_a_shared_port_counts_as_taken() -> None:
    """A listener that would share its port (SO_REUSEPORT, as another Envoy does) is found all the same."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        with pytest.raises(OpsError, match="is taken"):
            check_port("PORT", "127.0.0.1", server.getsockname()[1])


def test_an_address_of_another_machine_is_named() -> None:
    """HOST must be an address of this machine; the line says so instead of blaming the port."""
    with pytest.raises(OpsError, match=r"HOST=192\.0\.2\.1"):
        check_port("PORT", "192.0.2.1", 8000)


def test_zero_takes_free_ports(tmp_path: Path) -> None:
    """PORT=0 and ADMIN_PORT=0 become two different concrete ports that all processes are told."""
    plan = with_ports(read_plan({"PORT": "0", "STATE_DIR": str(tmp_path)}, tmp_path))
    assert 0 < plan.edge.port != plan.edge.admin_port > 0
    assert (plan.env["PORT"], plan.env["ADMIN_PORT"]) == (str(plan.edge.port), str(plan.edge.admin_port))


def test_admin_and_client_port_must_differ(tmp_path: Path) -> None:
    """One number for both ports is refused by name."""
    port = str(free_port("127.0.0.1"))
    with pytest.raises(OpsError, match="PORT and ADMIN_PORT are both"):
        with_ports(read_plan({"PORT": port, "ADMIN_PORT": port, "STATE_DIR": str(tmp_path)}, tmp_path))


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:1"), ("127.0.0.1", "http://127.0.0.1:1"), ("::", "http://[::1]:1")],  # noqa: S104 - not bound
)
def test_the_address_shown_can_be_opened(host: str, url: str) -> None:
    """The table shows an address that a browser on this machine can open, also when Envoy listens on all."""
    assert url_of(host, 1) == url


def test_a_missing_model_folder_is_said_before_the_start(tmp_path: Path) -> None:
    """A path without a model is refused in a moment, not after torch was imported; the fake engine needs none."""
    with pytest.raises(OpsError, match="is no folder"):
        check_model(RunnerSettings(model_name="./nowhere"), tmp_path)
    with pytest.raises(OpsError, match=r"has no config\.json"):
        check_model(RunnerSettings(model_name=str(tmp_path)), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    check_model(RunnerSettings(model_name=str(tmp_path)), tmp_path)
    check_model(RunnerSettings(model_name="./nowhere", engine="fake"), tmp_path)
    check_model(RunnerSettings(model_name="org/name"), tmp_path)
