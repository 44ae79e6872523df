from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from services.ops import probe
from services.ops.logs import Reader, pick, tail, time_of
from services.ops.probe import Readiness, Work
from services.ops.state import History, OpsError
from services.ops.status import Row, Status, duration, table
from services.ops.watch import Seen, Totals, events, line
from services.pods_file import PodEntry

if TYPE_CHECKING:
    from pathlib import Path

POD = PodEntry(name="engine-1", host="127.0.0.1", port=1, pid=7)


def shown(status: Status) -> str:
    """The table as it is printed."""
    console = Console(file=io.StringIO(), width=250)
    console.print(table(status))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(name: str, state: str = "running", restarts: int = 0, last_exit: str = "") -> Row:
    """A row of the table."""
    return Row(name, state, "127.0.0.1:1", 7, 42, restarts, last_exit, f"/logs/{name}.log")


def test_the_table_names_what_runs_where() -> None:
    """Name, state, address, process id, uptime and log file stand in one row; restarts only where there were any."""
    text = shown(Status("http://x", True, [row("envoy")], [row("engine-1", "ready")]))
    assert all(part in text for part in ("engine-1", "ready", "127.0.0.1:1", "42 s", "/logs/engine-1.log"))
    assert "restarts" not in text
    again = shown(Status("http://x", True, [row("envoy")], [row("engine-1", "ready", 2, "killed by SIGKILL")]))
    assert "restarts" in again
    assert "killed by SIGKILL" in again


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.9, "59 s"), (60, "1 min"), (7500, "2 h 5 min"), (90_000, "1 d 1 h")])
def test_a_duration_is_read_at_a_glance(seconds: float, text: str) -> None:
    """Two units at most."""
    assert duration(seconds) == text


def test_a_restart_is_told_once_with_its_reason() -> None:
    """The live view says that a pod died and why, and that it is ready again, each once."""
    seen = Seen()
    assert list(events(seen, (POD,), [Readiness(state="ready")], {"edge": History()})) == []
    died = PodEntry(name="engine-1", host="127.0.0.1", port=2, pid=8, restarts=1, last_exit="killed by SIGKILL")
    told = list(events(seen, (died,), [Readiness(state="loading")], {"edge": History(1, "exit code 2")}))
    assert told == ["edge died (exit code 2), started again", "engine-1 died (killed by SIGKILL), started again", "engine-1 is loading"]
    assert list(events(seen, (died,), [Readiness(state="ready")], {"edge": History(1, "exit code 2")})) == ["engine-1 is ready"]
    assert list(events(seen, (), [], {})) == ["engine-1 is gone"]


def test_counts_survive_a_pods_death() -> None:
    """The number of requests never falls when a pod begins again at zero, or does not answer for a moment."""
    totals = Totals()
    totals.add((POD,), [Work(10, 1, 100)])
    totals.add((POD,), [None])
    totals.add((PodEntry(name="engine-1", host="127.0.0.1", port=2, pid=8),), [Work(2, 0, 20)])
    assert (totals.requests, totals.tokens) == (12, 120)
    assert line(totals, 35.4, [Work(2, 3, 20)], [Readiness(state="ready")]) == "12 requests · 3 in flight · 35 tokens/s · 1 of 1 pods ready"


def test_metrics_are_summed_over_labels() -> None:
    """A counter's label sets add up; a metric whose name merely begins the same, comments and timestamps do not count."""
    text = '# HELP a x\na{b="1",c="}"} 2\na{b="2"} 3.5 1700000000\na_created{b="1"} 99\na 1\n'
    assert probe.total(text, "a") == 6.5
    assert probe.total(text, "missing") == 0


@pytest.mark.parametrize(
    "text",
    ['{"ts": "2026-01-31T10:00:00.250Z"}', "[2026-01-31T10:00:00,250+00:00] x", '{"a": 1, "ts": "2026-01-31T12:00:00.250+02:00"}'],
)
def test_times_of_all_logs_are_understood(text: str) -> None:
    """Each form in which a log writes the time is placed at the same moment."""
    assert time_of(text, 0) == 1769853600.25


def test_logs_are_merged_by_time(tmp_path: Path) -> None:
    """All logs read like one: in order of time, a line without a time (a traceback) stays behind the one before it."""
    (tmp_path / "edge.log").write_text("2026-01-01T00:00:01Z one\n  continued\n2026-01-01T00:00:03Z three\n")
    (tmp_path / "runner.log").write_text("2026-01-01T00:00:02Z two\n")
    (tmp_path / "runner.log.1").write_text("2026-01-01T00:00:00Z zero\n")
    texts = [found.text.split()[-1] for found in tail(tmp_path, pick(tmp_path, None), 10)]
    assert texts == ["zero", "one", "continued", "two", "three"]
    assert [found.text[-5:] for found in tail(tmp_path, ["edge"], 1)] == ["three"]
    assert tail(tmp_path, ["edge"], 0) == []


def test_an_unknown_log_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    """`convoy logs egde` says which logs there are."""
    (tmp_path / "edge.log").touch()
    with pytest.raises(OpsError, match="there are: edge"):
        pick(tmp_path, "egde")


def test_following_goes_on_through_rotation(tmp_path: Path) -> None:
    """`logs -f` shows what was written before, during and after a rotation, without loss or repetition, and half lines whole."""
    path = tmp_path / "edge.log"
    path.write_text("old\n")
    reader = Reader(path, from_end=True)

    def write(text: str) -> list[str]:
        with path.open("a") as file:
            file.write(text)
        return reader.new_lines()

    assert write("a\nb") == ["a"]
    assert write("c\n") == ["bc"]
    with path.open("a") as file:
        file.write("last\n")
    path.rename(tmp_path / "edge.log.1")
    assert write("d\n") == ["last", "d"]
    assert write("e\n") == ["e"]
    path.write_text("f\n")
    assert reader.new_lines() == ["f"]


def test_a_log_that_appears_later_is_read_from_its_beginning(tmp_path: Path) -> None:
    """A pod that starts while somebody follows is shown from its first line."""
    reader = Reader(tmp_path / "engine-3.log", from_end=True)
    assert reader.new_lines() == []
    (tmp_path / "engine-3.log").write_text("first\n")
    assert reader.new_lines() == ["first"]
