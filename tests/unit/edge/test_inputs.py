"""Files that people edit while the edge runs: what counts, and what is said of what does not."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from services.clients.guests import NOBODY, Guests
from services.edge import clients, lane, rendering
from services.edge.__main__ import main
from services.edge.files import ENVOY_DIR, EnvoyFiles
from services.edge.inputs import Inputs, blame, in_words
from services.pods_file import PodEntry
from services.settings import EdgeSettings

if TYPE_CHECKING:
    from pathlib import Path

FILES = EnvoyFiles.load()
HASH = "a" * 64
GOOD = f"clients:\n- name: alice\n  keys: [{HASH}]\n"


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """The inputs of an edge whose files lie in a folder of their own."""
    shutil.copytree(ENVOY_DIR, tmp_path / "envoy")
    settings = EdgeSettings(state_dir=str(tmp_path), clients_file=str(tmp_path / "clients.yaml"))
    found = Inputs(settings, tmp_path / "envoy")
    for part in found.look():
        part.accept()
    return found


def _take(inputs: Inputs) -> list[str]:
    """Accepts what is new; the names of the files."""
    fresh = inputs.look()
    for part in fresh:
        part.accept()
    return [part.path.name for part in fresh]


def test_nothing_new_is_no_news(inputs: Inputs) -> None:
    """A second look finds nothing, and all is well."""
    assert inputs.look() == []
    assert inputs.errors() == {}
    assert inputs.wanted().clients is None


def test_another_mode_is_news(inputs: Inputs, tmp_path: Path) -> None:
    """A file that could not be read is tried again when its mode allows it, though its content is what it was."""
    path = tmp_path / "clients.yaml"
    path.write_text(GOOD)
    path.chmod(0o600)
    assert _take(inputs) == ["clients.yaml"]
    path.chmod(0o640)
    assert _take(inputs) == ["clients.yaml"]
    assert _take(inputs) == []


def test_a_file_that_may_not_be_read_names_who_may_not(tmp_path: Path) -> None:
    """In a container that is another user than the one who wrote it."""
    told = in_words(PermissionError(13, "Permission denied"), tmp_path / "clients.yaml")
    assert told == f"clients.yaml: the edge (user id {os.geteuid()}) may not read it; for containers see Keys in README.md"


def test_a_good_file_counts_and_a_bad_one_leaves_what_was(inputs: Inputs, tmp_path: Path) -> None:
    """The clients of before count until the mistake is mended; the error is there as long as the mistake."""
    path = tmp_path / "clients.yaml"
    path.write_text(GOOD)
    assert _take(inputs) == ["clients.yaml"]
    path.write_text(GOOD + "- name: bob\n")
    assert _take(inputs) == []
    assert inputs.errors()[str(path)].startswith("clients.yaml:4: ")
    known = inputs.wanted().clients
    assert known
    assert [client.name for client in known.clients] == ["alice"]
    path.write_text(GOOD.replace("alice", "carol"))
    assert _take(inputs) == ["clients.yaml"]
    assert inputs.errors() == {}


def test_a_clients_file_that_goes_leaves_its_clients(inputs: Inputs, tmp_path: Path) -> None:
    """Deleting the file does not let everybody in."""
    path = tmp_path / "clients.yaml"
    path.write_text(GOOD)
    _take(inputs)
    path.unlink()
    assert _take(inputs) == []
    assert "gone" in inputs.errors()[str(path)]
    assert inputs.wanted().clients


def test_an_edge_that_begins_without_the_file_keeps_what_was_written(tmp_path: Path) -> None:
    """Beside an Envoy that asks for keys, a missing or broken file means: not known now."""
    path = tmp_path / "clients.yaml"
    settings = EdgeSettings(state_dir=str(tmp_path), clients_file=str(path))
    gone = Inputs(settings, ENVOY_DIR, had_clients=True)
    gone.look()
    assert gone.wanted().keeps_clients
    path.write_text("clients: 1")
    broken = Inputs(settings, ENVOY_DIR)
    broken.look()
    assert broken.wanted().keeps_clients
    open_door = Inputs(msgspec.structs.replace(settings, clients_file=str(tmp_path / "none")), ENVOY_DIR)
    open_door.look()
    assert not open_door.wanted().keeps_clients


def test_blame_names_the_line_that_the_reason_quotes(inputs: Inputs, tmp_path: Path) -> None:
    """Envoy's reason has no line; the one that holds its quoted word is it."""
    path = tmp_path / "envoy" / "clusters.yaml"
    text = path.read_text() + "  no_such_field: 1\n"
    path.write_text(text)
    blame(inputs.look(), "(resources[0]) no_such_field: no such field: 'no_such_field'")
    assert f"clusters.yaml: line {len(text.splitlines())}: " in inputs.errors()[str(path)]
    assert inputs.wanted().files == FILES


def test_guests_leave_when_their_time_is_over(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor's file needs nobody to delete it."""
    path = tmp_path / "doctor.json"
    path.write_bytes(msgspec.json.encode(Guests(token="t" * 20, until=time.time() + 60)))
    assert _take(inputs) == ["doctor.json"]
    assert inputs.wanted().guests != NOBODY
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert _take(inputs) == ["doctor.json"]
    assert inputs.wanted().guests == NOBODY


def test_the_lane_is_a_copy_with_its_own_pods(tmp_path: Path) -> None:
    """The doctor's cluster has the pool's policies, its routes the pool's limits, and only a request with the token gets there."""
    guests = Guests(token="t" * 20, until=1.0, pods=(PodEntry(name="doctor-1", host="127.0.0.1", port=1),))
    settings = EdgeSettings(admin_port=1)
    plain = rendering.clusters(FILES, settings, tmp_path)
    pool, copy = plain["resources"][0], lane.clusters(plain, guests, tmp_path)["resources"][-1]
    assert copy["name"] == "engine-doctor"
    for policy in ("circuit_breakers", "outlier_detection", "health_checks", "load_balancing_policy", "typed_extension_protocol_options"):
        assert copy[policy] == pool[policy]
    routes = lane.routes(rendering.routes(FILES, settings, 0), guests)["resources"][0]["virtual_hosts"][0]["routes"]
    names = [route["name"] for route in routes]
    for name in ("generation_stream", "generation_json"):
        assert names.index(f"doctor_{name}") == names.index(name) - 1
        route = routes[names.index(f"doctor_{name}")]
        assert {"name": "x-doctor-lane", "string_match": {"exact": "t" * 20}} in route["match"]["headers"]
        assert route["route"]["cluster"] == "engine-doctor"
        assert route["route"]["retry_policy"]["num_retries"] == 1
    assert lane.clusters(plain, NOBODY, tmp_path) == plain


def test_classes_and_not_clients_are_in_the_limiter() -> None:
    """Who comes and goes changes no limiter: that would fill every bucket anew."""
    from services.clients.reading import parse

    one, two = parse(GOOD, "c"), parse(GOOD + f"- name: bob\n  keys: [{'b' * 64}]\n", "c")
    assert clients.limit_client(FILES, one) == clients.limit_client(FILES, two)
    assert clients.keys_script(FILES, one) != clients.keys_script(FILES, two)
    assert clients.keys_script(FILES, None) == FILES.keys_program


@pytest.mark.parametrize(
    ("host", "more", "code"),
    [("0.0.0.0", {}, 1), ("0.0.0.0", {"ALLOW_NO_KEYS": "true"}, 0), ("127.0.0.2", {}, 0)],  # noqa: S104 - asked for
)
def test_nobody_listens_to_strangers_without_keys_by_mistake(
    host: str, more: dict[str, str], code: int, *, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a clients file only loopback is listened on, unless somebody says that all is well."""
    values = {"HOST": host, "STATE_DIR": str(tmp_path), "ADMIN_PORT": "9123", "CLIENTS_FILE": str(tmp_path / "clients.yaml"), **more}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert main(["render"]) == code
    assert ("CLIENTS_FILE" in capsys.readouterr().err) == bool(code)
    (tmp_path / "clients.yaml").write_text(GOOD)
    assert main(["render"]) == 0
