from __future__ import annotations

import csv
import io
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import msgspec
import pytest

from services.ops.load import report
from services.ops.load.__main__ import prepared
from services.ops.load.arrivals import Stage, spike, steady
from services.ops.load.outcome import Outcome
from services.ops.load.report import Limits, Report
from services.ops.state import OpsError
from tests.stack.harness import free_ports

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NO_LIMITS = Limits()
STAGES = spike(2, 4, (10, 10, 10))

TTFTS = (("before", "no TTFT", ""), ("spike", "TTFT", " 100"), ("after", "no TTFT", ""))


def answered(intended: float, seconds: float, stage: int = 0, **more: Any) -> Outcome:
    """A whole answer of ten tokens, unless it is said otherwise."""
    usual: dict[str, Any] = {"kind": "chat json", "sent": intended, "status": 200, "is_whole": True, "tokens": 10, "stage": stage}
    return Outcome(**usual | {"intended": intended, "ended": intended + seconds} | more)


OUTCOMES = [
    answered(1, 0.2),
    answered(11, 0.4, 1, kind="chat <stream>", is_stream=True, first_token=11.1, gaps=(0.02, 0.04)),
    answered(12, 0.01, 1, status=429, code="queue_full", is_whole=False, tokens=0),
    answered(29.9, 0.3, 2),
]


def made(
    outcomes: Sequence[Outcome] = OUTCOMES, stages: Sequence[Stage] = STAGES, limits: Limits = NO_LIMITS, command: str = "locust"
) -> Report:
    """The report."""
    return report.make(outcomes, stages, limits, command=command, url="http://127.0.0.1:8000", began_at="2026-01-02T03:04:05+00:00")


def test_the_csv_has_a_line_for_each_stage() -> None:
    """Figures in their columns; what there is not, is empty."""
    first, second, _ = csv.DictReader(io.StringIO(report.as_csv(made().stages)))
    assert (first["stage"], first["requests"], first["rps"], first["p95_ms"], first["ttft_p95_ms"]) == ("before", "1", "0.1", "200", "")
    assert (second["error_rate"], second["p50_ms"], second["ttft_p95_ms"], second["gap_p95_ms"]) == ("0.5", "400", "100", "40")
    assert (second["tokens_per_second"], second["results"]) == ("1", "200: 1; 429 queue_full: 1")


def test_over_time_every_request_is_in_its_second() -> None:
    """The parts are equally long, cover the whole load, and are at most sixty."""
    moments = made().moments
    assert len(moments) == 30
    assert [number for number, moment in enumerate(moments) if moment.requests] == [1, 11, 12, 29]
    long = made([answered(100, 1)], [steady(1, 605)]).moments
    assert len(long) <= 60
    assert sum(moment.seconds for moment in long) == pytest.approx(605)


@pytest.mark.parametrize(
    ("limits", "missed"),
    [
        (Limits(), []),
        (Limits(max_error_rate=0.5, max_p95_ms=401, max_ttft_p95_ms=None, min_rps=0.1, min_tokens_per_second=1), []),
        (Limits(max_error_rate=0.4), ["spike: error rate 0.5, must be at most 0.4"]),
        (Limits(max_p95_ms=301), ["spike: p95 in ms 400, must be at most 301"]),
        (
            Limits(max_ttft_p95_ms=50),
            [f"{stage}: {what} p95 in ms{value}, must be at most 50" for stage, what, value in TTFTS],
        ),
        (Limits(min_rps=0.2), [f"{name}: requests/s 0.1, must be at least 0.2" for name in ("before", "spike", "after")]),
        (Limits(min_tokens_per_second=2), [f"{name}: tokens/s 1, must be at least 2" for name in ("before", "spike", "after")]),
    ],
)
def test_what_a_stage_missed_is_said(limits: Limits, missed: list[str]) -> None:
    """With value and limit; no figure at all is no way to keep a limit."""
    assert made(limits=limits).missed == missed


def test_a_load_without_a_request_keeps_no_limit() -> None:
    """Whatever the limits are."""
    assert made([]).missed == ["no request was made"]


class Page(HTMLParser):
    """Looks whether tags are closed, and for addresses that a browser would fetch."""

    def __init__(self) -> None:
        """Nothing is open."""
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Void elements have no end."""
        self.fetched += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in {"meta", "line", "circle", "rect", "polygon", "path"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Closed at once."""

    def handle_endtag(self, tag: str) -> None:
        """The last opened is closed first."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Text of the tables."""
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_all_files_tell_the_same(tmp_path: Path) -> None:
    """The JSON can be read back, the page needs nothing from elsewhere and shows stages, charts, limits and command."""
    whole = made(limits=Limits(max_p95_ms=300), command="locust --max-p95-ms 300 <&>")
    report.write(whole, tmp_path / "new" / "folder")
    names = {path.name: path.read_text() for path in (tmp_path / "new" / "folder").iterdir()}
    assert names.keys() == {"stages.csv", "load.json", "index.html"}
    assert msgspec.json.decode(names["load.json"], type=Report) == whole
    html = names["index.html"]
    page = Page()
    page.feed(html)
    assert (page.open, page.fetched) == ([], [])
    assert {"before", "spike", "after", "400", "50.00 %", "chat <stream>"} <= set(page.cells)
    assert "locust --max-p95-ms 300 &lt;&amp;&gt;" in html
    assert "spike: p95 in ms 400, must be at most 300" in html
    charts = [ET.fromstring("<svg" + part.partition("</svg>")[0] + "</svg>") for part in html.split("<svg")[1:]]  # noqa: S314 - our own
    assert len(charts) == 5


def test_the_command_is_told_without_its_key() -> None:
    """However the option is written; words with blanks can be typed again."""
    assert report.command_line(["locust", "--api-key", "sk-1", "-u", "3"]) == "locust --api-key … -u 3"
    assert report.command_line(["locust", "--api-key=sk-1", "a b"]) == "locust --api-key=… 'a b'"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing runs"),
        (["--host", "localhost:8000"], "--host localhost:8000"),
        (["-H", "http://127.0.0.1:x"], "--host http://127.0.0.1:x"),
        (["--host", "http://127.0.0.1:{port}"], "nobody answers at http://127.0.0.1:{port}"),
    ],
)
def test_without_a_stack_there_is_one_clear_line(tmp_path: Path, words: list[str], said: str) -> None:
    """It names the cure, and no Locust is started."""
    port = str(free_ports(1)[0])
    with pytest.raises(OpsError) as refused:
        prepared([word.replace("{port}", port) for word in words], {"STATE_DIR": str(tmp_path)})
    assert said.replace("{port}", port) in str(refused.value)


def test_help_needs_no_stack(tmp_path: Path) -> None:
    """And a key goes by the environment, where only we can see it."""
    command, env = prepared(["--help"], {"STATE_DIR": str(tmp_path), "CONVOY_API_KEY": "sk-1"})
    assert "--help" in command
    assert env["CONVOY_API_KEY"] == "sk-1"
    assert not any("sk-1" in word for word in command)
