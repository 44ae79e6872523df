"""What people are told of the edge: `convoy status`, `convoy reload` and `convoy edge` on a real stack, and Envoy's window for `ops`."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.stack.convoy import convoy, until
from tests.stack.knowing import bearer, clients_file, hash_of, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.stack.convoy import Convoy

pytestmark = pytest.mark.stack

CLIENTS = clients_file(
    {"alice": "class: slow", "root": "role: ops", "gone": "expires: 2020-01-01"},
    limits="standard: {requests_per_minute: 60000, burst: 1000}\nslow: {requests_per_minute: 1, burst: 1}",
)


class Stack:
    """A running stack with a clients file and a `.env` of its own."""

    def __init__(self, running: Convoy, folder: Path) -> None:
        """Both files lie in `folder`."""
        self.convoy, self.clients, self.env_file = running, folder / "clients.yaml", folder / ".env"

    def write(self, path: Path, text: str) -> None:
        """Replaces a file by rename, as editors do."""
        fresh = path.with_name(".fresh")
        fresh.write_text(text)
        fresh.replace(path)

    def reload(self) -> tuple[int, str]:
        """Exit code and what `convoy reload` says."""
        done = self.convoy.run("reload")
        assert not done.stderr, done.stderr
        return done.returncode, done.stdout

    def reloaded(self, name: str) -> tuple[int, str]:
        """Exit code and the line about one setting or file; the line is empty if there is none."""
        code, text = self.reload()
        return code, next((" ".join(line.split()) for line in text.splitlines() if line.split()[:1] and name in line.split()[0]), "")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two fake pods behind an edge that knows clients."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "clients.yaml").write_text(CLIENTS)
    (folder / ".env").write_text("REQUEST_TIMEOUT_SECONDS=610\n")
    with convoy(CLIENTS_FILE=str(folder / "clients.yaml"), CONVOY_ENV_FILE=str(folder / ".env")) as started:
        done = started.run("up", "--detach")
        assert done.returncode == 0, done.stderr
        yield Stack(started, folder)


@pytest.fixture
def stack(running: Stack) -> Iterator[Stack]:
    """The stack, whose files are as at the start before and after each test."""
    yield running
    running.write(running.clients, CLIENTS)
    running.write(running.env_file, "REQUEST_TIMEOUT_SECONDS=610\n")
    until(lambda: running.reload()[0] == 0, lambda: str(running.reload()))


def test_without_changes_all_is_in_force(stack: Stack) -> None:
    """Exit code 0; no setting is listed, each file is."""
    code, text = stack.reload()
    assert (code, text.splitlines()[-1]) == (0, "all is in force")
    assert {"clients.yaml", "routes.yaml", ".env"} <= {line.split()[0].rsplit("/", 1)[-1] for line in text.splitlines()}
    assert "REQUEST_TIMEOUT_SECONDS" not in text


def test_each_changed_setting_says_when_it_applies(stack: Stack) -> None:
    """A live one is in force when the command returns, others name the command that they wait for; waiting is no failure."""
    stack.write(stack.env_file, "REQUEST_TIMEOUT_SECONDS=620\nPODS=3\nMAX_CONNECTIONS=100\nEJECT_AFTER_ERRORS=7\n")
    assert stack.reloaded("REQUEST_TIMEOUT_SECONDS") == (0, "REQUEST_TIMEOUT_SECONDS 610 620 in force")
    assert stack.reloaded("EJECT_AFTER_ERRORS") == (0, "EJECT_AFTER_ERRORS 5 7 in force")
    assert stack.reloaded("PODS") == (0, "PODS 2 3 after `convoy scale 3`")
    assert stack.reloaded("MAX_CONNECTIONS") == (0, "MAX_CONNECTIONS 8192 100 after `convoy restart envoy`")
    routes = (stack.convoy.state_dir / "xds" / "routes.json").read_text()
    assert '"timeout": "620s"' in routes, "what is said to be in force is what Envoy was given"


def test_a_restart_puts_its_settings_in_force(stack: Stack) -> None:
    """What waited for `convoy restart envoy` is in force, and no longer listed as a change, after it."""
    stack.write(stack.env_file, "REQUEST_TIMEOUT_SECONDS=610\nMAX_CONNECTIONS=200\n")
    assert stack.reloaded("MAX_CONNECTIONS") == (0, "MAX_CONNECTIONS 8192 200 after `convoy restart envoy`")
    done = stack.convoy.run("restart", "envoy")
    assert done.returncode == 0, done.stderr
    assert stack.reloaded("MAX_CONNECTIONS") == (0, "")


def test_a_setting_of_the_shell_waits_for_a_start(stack: Stack) -> None:
    """What the shell gives goes before `.env`, so the running edge cannot take it over."""
    done = stack.convoy.run("reload", REQUEST_TIMEOUT_SECONDS="630")
    assert done.returncode == 0, done.stdout
    assert "REQUEST_TIMEOUT_SECONDS 610 630 after `convoy down, convoy up`" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("REQUEST_TIMEOUT_SECONDS=610\nEJECT_AFTER_ERRORS=many\n", ".env:2: EJECT_AFTER_ERRORS=many: must be a whole number"),
        ("PODS=none\n", ".env:1: PODS=none: must be a whole number"),
        ("\nPODDS=2\n", ".env:2: .env: PODDS is not a setting of Convoy (did you mean PODS?)"),
    ],
)
def test_a_refused_env_file_is_told_with_its_line(stack: Stack, text: str, reason: str) -> None:
    """Exit code 1 and the reason, though `.env` could not start anything; status and down still work."""
    stack.write(stack.env_file, text)
    code, line = stack.reloaded(str(stack.env_file))
    assert code == 1
    assert f"refused: {reason}" in line
    assert stack.convoy.run("status").stdout.splitlines()[0].startswith("name")


def test_a_refused_clients_file_is_told_everywhere(stack: Stack) -> None:
    """File, line and reason stand in status and reload, both end with 1; a second mistake is told as such; the repaired file ends it."""
    stack.write(stack.clients, CLIENTS.replace("role: ops", "role: king"))
    code, line = stack.reloaded(str(stack.clients))
    assert code == 1
    assert "refused: clients.yaml:6: clients[1].role: must be user or ops, got 'king'" in line
    done = stack.convoy.run("status")
    assert done.returncode == 1
    assert "edge: clients.yaml:6: clients[1].role: must be user or ops, got 'king'" in done.stdout.splitlines()
    assert stack.convoy.status()["problems"] == ["clients.yaml:6: clients[1].role: must be user or ops, got 'king'"]
    stack.write(stack.clients, CLIENTS.replace("class: slow", "class: fast"))
    assert "clients.yaml:5: client alice has the class fast" in stack.reloaded(str(stack.clients))[1]
    stack.write(stack.clients, CLIENTS)
    assert stack.reloaded(str(stack.clients)) == (0, f"{stack.clients} in force")
    assert stack.convoy.run("status").returncode == 0


def test_the_edge_is_shown_without_secrets(stack: Stack) -> None:
    """Routes, clients with limits, pods, circuits, who hit a limit, versions; no key and no hash, in the table and in JSON."""
    url = stack.convoy.status()["url"]
    statuses = [httpx.get(f"{url}/v1/models", headers=bearer("alice")).status_code for _ in range(3)]
    assert statuses == [200, 429, 429]
    shown, told = stack.convoy.run("edge"), stack.convoy.run("edge", "--json")
    assert (shown.returncode, told.returncode) == (0, 0), shown.stderr + told.stderr
    view = json.loads(told.stdout)
    assert [pod["envoy"] for pod in view["pods"]] == ["healthy"] * 2
    assert view["counts"]["answers 429"]["limit of a client"] == 2
    assert {client["name"]: client["expires"] for client in view["clients"]} == {
        "alice": "never",
        "root": "never",
        "gone": "expired 2020-01-01",
    }
    assert {(route["path"], route["who"]) for route in view["routes"]} >= {
        ("/metrics", "ops"),
        ("/envoy/(stats|clusters|server_info)", "ops"),
        ("/chat", "who has a key"),
        ("/docs(/.*)?", "all"),
    }
    assert all(written == runs for written, runs in view["versions"].values())
    for text in ("alice", "slow (1/min, burst 1)", "engine-2", "first token 20s", "limit of a client"):
        assert text in shown.stdout
    for name in ("alice", "root", "gone"):
        for output in (shown.stdout, told.stdout):
            assert key_of(name) not in output
            assert hash_of(name)[:9] not in output


def test_envoys_window_is_for_ops_and_reads_only(stack: Stack) -> None:
    """GET with the role `ops` shows statistics, clusters and server information, none of which holds a key or a hash."""
    url = stack.convoy.status()["url"]
    for page in ("stats", "clusters", "server_info"):
        address = f"{url}/envoy/{page}"
        assert httpx.get(address).status_code == 401
        shown = httpx.get(address, headers=bearer("root"))
        assert shown.status_code == 200
        for name in ("alice", "root", "gone"):
            assert key_of(name) not in shown.text
            assert hash_of(name) not in shown.text
        for method in ("POST", "PUT", "DELETE", "HEAD"):
            assert httpx.request(method, address, headers=bearer("root")).status_code == 405
    until(lambda: httpx.get(f"{url}/envoy/stats", headers=bearer("alice")).status_code in {403, 429}, lambda: "alice is refused")
    for path in ("config_dump", "quitquitquit", "logging", "stats/../config_dump", "stats?usedonly&filter=.*%0d"):
        answer = httpx.get(f"{url}/envoy/{path}", headers=bearer("root"))
        assert answer.status_code in {200, 403, 404}
        assert key_of("root") not in answer.text
        assert (answer.status_code == 200) == path.startswith("stats?"), path


def test_a_silent_envoy_is_said_and_the_rest_shown(stack: Stack) -> None:
    """`convoy edge` without Envoy: exit code 1, that it is silent, and what the files say."""
    pid = stack.convoy.row("envoy")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        done = stack.convoy.run("edge")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert done.returncode == 1
    assert "Envoy does not answer" in done.stdout
    assert "/v1/chat/completions" in done.stdout


def test_where_nothing_runs_that_is_said() -> None:
    """Exit code 3 and one line."""
    with convoy() as stopped:
        for command in ("edge", "reload"):
            done = stopped.run(command)
            assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (3, 1, "")
            assert "nothing runs" in done.stdout
