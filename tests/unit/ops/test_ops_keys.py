from __future__ import annotations

import hashlib
import io
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from services.clients.reading import parse
from services.files import write_atomically
from services.ops import keys_typed, keys_view
from services.ops.in_force import Watch
from services.ops.state import OpsError, StateDir

if TYPE_CHECKING:
    from pathlib import Path

A, B, C = "a" * 64, "b" * 64, "c" * 64
NOW = 1801353600.0  # 2027-01-31
TEXT = f"""\
limits:
  batch: {{requests_per_minute: 60, burst: 5}}
clients:
- name: alice
  keys: [{A}, {{sha256: {B}, expires: 2027-01-30}}]
  class: batch
  models: [demo]
  tokens_per_minute: 1000
- name: bob
  keys: [{{sha256: {C}, expires: 2027-02-01}}]
  role: ops
  expires: 2027-03-01
"""


def test_list_shows_limits_keys_and_what_has_ended() -> None:
    """The beginning of each hash, with its end; a class with its limits."""
    console = Console(file=io.StringIO(), width=250)
    console.print(keys_view.table(parse(TEXT, "c.yaml"), NOW))
    assert isinstance(console.file, io.StringIO)
    _, alice, second_key, bob = console.file.getvalue().splitlines()
    assert alice.split() == ["alice", "user", "batch", "(60/min,", "burst", "5)", "aaaaaaaa", "demo", "normal", "1000", "-", "never"]
    assert second_key.split() == ["bbbbbbbb", "expired", "2027-01-30"]
    assert "cccccccc until 2027-02-01 " in bob
    assert bob.split()[-1] == "2027-03-01"


def test_list_as_json_has_whole_hashes_and_what_has_ended(tmp_path: Path) -> None:
    """For programs."""
    told = json.loads(keys_view.as_json(tmp_path, parse(TEXT, "c.yaml"), NOW, is_there=True))
    alice, bob = told["clients"]
    assert alice["keys"] == [
        {"sha256": A, "expires": None, "expired": False},
        {"sha256": B, "expires": "2027-01-30", "expired": True},
    ]
    assert (alice["class"], alice["limits"], alice["models"]) == ("batch", {"requests_per_minute": 60, "burst": 5}, ["demo"])
    assert (bob["role"], bob["expires"], bob["expired"]) == ("ops", "2027-03-01", False)


@pytest.mark.parametrize(("keep", "seconds"), [("0", 0), ("0s", 0), ("90s", 90), ("30m", 1800), ("24h", 86400), ("7d", 604800)])
def test_keep_is_a_length_of_time(keep: str, seconds: int) -> None:
    """With its unit."""
    assert keys_typed.seconds(keep) == seconds


@pytest.mark.parametrize("keep", ["", "24", "-1h", "1w", "1.5h", "367d", "999999d", "٣h"])
def test_keep_without_a_unit_or_too_long_is_refused(keep: str) -> None:
    """The message says what is allowed."""
    with pytest.raises(OpsError, match=r"^--keep must be 0 or a time such as 30m, 24h or 7d, at most 366d"):
        keys_typed.seconds(keep)


class Told:
    """An edge that runs, by what it tells."""

    def __init__(self, tmp_path: Path) -> None:
        """Tells nothing yet."""
        self.clients = tmp_path / "clients.yaml"
        self.state = StateDir(tmp_path)

    def tell(self, content: bytes, error: str = "", runs: str = "2") -> None:
        """Writes edge.json."""
        entry = {"sha256": hashlib.sha256(content).hexdigest(), "error": error}
        told: dict[str, Any] = {
            "inputs": {str(self.clients): entry},
            "envoy": {"runs": {"keys": runs}},
            "written": {"keys": "2"},
            "pods": [],
        }
        write_atomically(self.state.path / "edge.json", json.dumps(told).encode())


@pytest.fixture
def told(tmp_path: Path) -> Told:
    """Nothing is told yet."""
    return Told(tmp_path)


def test_an_edit_is_in_force_when_envoy_runs_what_the_edge_made_of_it(told: Told) -> None:
    """Neither the old content, nor the new one that Envoy does not run yet, is enough."""
    told.tell(b"old")
    watch = Watch(told.state, told.clients)
    problems: list[str] = []
    waiting = threading.Thread(target=lambda: problems.append(watch.wait(b"new", 60)))
    waiting.start()
    told.tell(b"new", runs="1")
    waiting.join(0.3)
    assert waiting.is_alive()
    told.tell(b"new")
    waiting.join(30)
    assert problems == [""]


def test_a_new_mistake_is_told_at_once_and_one_of_before_only_when_it_stays(told: Told) -> None:
    """The edge may not have looked since the file was mended."""
    told.tell(b"old", error="of before")
    watch = Watch(told.state, told.clients)
    assert watch.wait(b"new", 0.1) == "of before"
    told.tell(b"old", error="clients.yaml:7: something else")
    assert watch.wait(b"new", 60) == "clients.yaml:7: something else"
    told.tell(b"new")
    assert not watch.wait(b"new", 60)


def test_an_edge_that_says_nothing_is_named(told: Told) -> None:
    """Where to look is said."""
    assert "`convoy logs edge`" in Watch(told.state, told.clients).wait(b"new", 0.1)
    (told.state.path / "edge.json").write_text("{")
    assert "`convoy logs edge`" in Watch(told.state, told.clients).wait(b"new", 0.1)
    told.tell(b"new")
    assert not Watch(told.state, told.clients).is_running
