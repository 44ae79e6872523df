"""The preview draws what Grafana would: from the dashboards' own files and what a Prometheus answers, here a made-up one."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from grafana import drawing
from grafana.asking import NoAnswerError, Prometheus
from grafana.build import DASHBOARDS
from grafana.preview import NAMES, Page, main
from grafana.units import marks, written

_START, _END = 1000.0, 2800.0
_BOARDS: list[dict[str, Any]] = [json.loads((DASHBOARDS / f"{name}.json").read_text()) for name in NAMES]


def prometheus(value: str = "0.4", *, silent: str = "") -> Prometheus:
    """One that answers `value` for two pods to every query, and nothing to those that name `silent`."""

    def answer(request: httpx.Request) -> httpx.Response:
        path, query = request.url.path.removeprefix("/api/v1/"), request.url.params.get("query", "")
        if path.startswith("label/"):
            return _told(["demo"] if path.startswith("label/model/") else ["engine-1", "engine-2"])
        if path == "query_exemplars":
            return _told([{"exemplars": [{"labels": {"trace_id": "abc123"}, "value": value, "timestamp": 2000.0}]}])
        labels = [{"instance": name} for name in ("engine-1", "engine-2")] if not (silent and silent in query) else []
        points = {"value": [_END, value]} if path == "query" else {"values": [[_START + 15 * at, value] for at in range(100)]}
        return _told({"result": [{"metric": one, **points} for one in labels]})

    return Prometheus(httpx.Client(base_url="http://prometheus", transport=httpx.MockTransport(answer)), _START, _END)


def _told(data: object) -> httpx.Response:
    return httpx.Response(200, json={"status": "success", "data": data})


def test_all_panels_are_drawn() -> None:
    """One page, which needs no network, with every title, and nothing said to be empty."""
    page = Page(prometheus())
    html = page.html(_BOARDS)
    assert page.count == sum(panel["type"] != "row" for board in _BOARDS for panel in board["panels"])
    assert page.empty == []
    assert "<script src" not in html
    assert drawing.NO_DATA not in html
    assert all(panel["title"] in html for board in _BOARDS for panel in board["panels"])
    assert "abc123" in html, "exemplars name their traces"


def test_an_empty_panel_is_seen() -> None:
    """In red on the page, and by its name in the terminal."""
    page = Page(prometheus(silent="llm_batch_size"))
    assert drawing.NO_DATA in page.html(_BOARDS)
    assert page.empty == ["Convoy · Pods: How large are the batches?"]


def test_a_quantile_of_nothing_is_idle_and_not_empty() -> None:
    """No requests is no fault."""
    page = Page(prometheus("NaN"))
    html = page.html(_BOARDS)
    assert page.empty == []
    assert drawing.IDLE in html
    assert ">idle</div>" in html


def test_variables_are_filled_in_as_grafana_does() -> None:
    """All values of a choice as one regular expression; the range; a window that holds enough scrapes."""
    asked = prometheus()
    asked.choose(_BOARDS[1]["templating"]["list"])
    assert asked.choices == {"model": ["demo"], "pod": ["engine-1", "engine-2"]}
    assert asked.filled('{instance=~"$pod"}') == '{instance=~"engine\\\\-1|engine\\\\-2"}'
    assert asked.filled("[$__range]") == "[1800s]"
    assert asked.filled("[${__rate_interval}]", step=15) == "[60s]"
    with pytest.raises(KeyError):
        asked.filled("$unknown")


def test_colours_are_those_of_the_thresholds() -> None:
    """A value belongs to the last step that it has reached."""
    steps: list[dict[str, Any]] = [{"value": None, "color": "green"}, {"value": 1.6, "color": "yellow"}, {"value": 2.0, "color": "red"}]
    names = [drawing.color_of(value, steps) for value in (0.1, 1.6, 2.5)]
    assert names == [drawing.COLORS[name] for name in ("green", "yellow", "red")]


def test_a_prometheus_that_is_not_there_is_one_readable_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Not a traceback."""
    assert main(["--prometheus", "http://127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.startswith("preview: http://127.0.0.1:1 does not answer")
    refusing = httpx.MockTransport(lambda _: httpx.Response(400, json={"status": "error", "error": "parse error"}))
    with pytest.raises(NoAnswerError, match="parse error"):
        Prometheus(httpx.Client(base_url="http://prometheus", transport=refusing), _START, _END).ask({"expr": "("})


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0482, "s", "48.2 ms"),
        (2.0, "s", "2 s"),
        (2470.0, "ms", "2.47 s"),
        (0.005, "percentunit", "0.5%"),
        (95.0, "percent", "95%"),
        (55.1 * 2**20, "bytes", "55.1 MiB"),
        (12500.0, "short", "12.5 K"),
        (19.84, "reqps", "19.8 req/s"),
        (0.0, "none", "0"),
        (0.0, "s", "0 s"),
    ],
)
def test_preview_writes_numbers_with_their_units(value: float, unit: str, text: str) -> None:
    """As Grafana does, near enough."""
    assert written(value, unit) == text


def test_preview_labels_an_axis_at_round_numbers() -> None:
    """Also of bytes, whose round numbers are others."""
    assert marks(0, 2.15, "s") == [0, 1, 2]
    assert marks(0, 60 * 2**20, "bytes") == [0, 20 * 2**20, 40 * 2**20, 60 * 2**20]
    assert marks(0.2, 1200, "none", log=True) == [0.1, 1, 10, 100, 1000, 10000]
