"""Draws the dashboards from Grafana's own JSON and live data as one HTML page, for people without Grafana.

python -m grafana.preview [--prometheus URL] [--minutes 30] [--out FILE] [--strict]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from plotly.offline import get_plotlyjs

from grafana import drawing
from grafana.asking import TIMEOUT_SECONDS, NoAnswerError, Prometheus
from grafana.build import DASHBOARDS
from services.settings import CommonSettings, load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAMES = ("service", "pods", "edge", "cost")
_STYLE = (Path(__file__).parent / "preview.css").read_text()


class Page:
    """The page as it grows, and which panels had nothing to show."""

    def __init__(self, prometheus: Prometheus) -> None:
        """`prometheus` answers the queries."""
        self._prometheus = prometheus
        self.empty: list[str] = []
        self.count = 0

    def html(self, dashboards: Sequence[Mapping[str, Any]]) -> str:
        """All dashboards, one below the other."""
        links = "".join(f'<a href="#{board["uid"]}">{escape(board["title"])}</a>' for board in dashboards)
        boards = "".join(self._board(board) for board in dashboards)
        head = f"<meta charset=utf-8><title>Convoy</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script>"
        return f"<!doctype html><html><head>{head}</head><body><nav>{links}</nav>{boards}</body></html>\n"

    def _board(self, board: Mapping[str, Any]) -> str:
        variables = board.get("templating", {}).get("list", [])
        self._prometheus.choose(variables)
        around = drawing.Around(self._prometheus.start, self._prometheus.end, self._restarts(board))
        chosen = "".join(
            f"<span>{escape(item['label'])}: {escape(', '.join(self._prometheus.choices[item['name']]))}</span>" for item in variables
        )
        panels = "".join(self._placed(board, panel, around) for panel in board["panels"])
        head = f"<h1>{escape(board['title'])}</h1><p>{escape(board['description'])}</p>{chosen}"
        return f'<section id="{board["uid"]}"><header>{head}</header><div class="grid">{panels}</div></section>'

    def _restarts(self, board: Mapping[str, Any]) -> list[float]:
        found = [self._prometheus.ask({"expr": item["expr"]}) for item in board["annotations"]["list"] if item.get("expr")]
        return sorted({_first(series.times, at) for answer in found for series in answer for at in series.times})

    def _placed(self, board: Mapping[str, Any], panel: Mapping[str, Any], around: drawing.Around) -> str:
        place = panel["gridPos"]
        style = f"grid-column:{place['x'] + 1}/span {place['w']};grid-row:{place['y'] + 1}/span {place['h']}"
        if panel["type"] == "row":
            return f'<h2 style="{style}">{escape(panel["title"])}</h2>'
        self.count += 1
        body = self._body(panel, around)
        if body == drawing.NO_DATA:
            self.empty.append(f"{board['title']}: {panel['title']}")
        words = f"<h3>{escape(panel['title'])}</h3><p>{escape(panel['description'])}</p>"
        return f'<div class="panel {panel["type"]}" style="{style}">{words}<div class="body">{body}</div></div>'

    def _body(self, panel: Mapping[str, Any], around: drawing.Around) -> str:
        drawn = [target for target in panel["targets"] if not target.get("exemplar")]
        answers = [self._prometheus.ask(target) for target in drawn]
        if drawing.is_empty(answers):
            return drawing.NO_DATA
        if panel["type"] == "stat":
            return drawing.number(panel, answers)
        if panel["type"] == "table":
            return drawing.rows(panel, answers)
        points = [point for target in panel["targets"] if target.get("exemplar") for point in self._prometheus.exemplars(target)]
        return drawing.lines(panel, answers, points, around)


def _first(times: Sequence[float], at: float) -> float:
    """The beginning of the run of moments that `at` is in: one start is seen at several."""
    earlier = [moment for moment in times if moment <= at]
    while len(earlier) > 1 and earlier[-1] - earlier[-2] <= 15:
        earlier.pop()
    return earlier[-1]


def running_prometheus() -> str:
    """Where the running stack's Prometheus answers, as `convoy up` has written; empty if it has none."""
    path = Path(load(CommonSettings).state_dir, "prometheus", "targets", "prometheus.json")
    groups = json.loads(path.read_text()) if path.exists() else []
    addresses = [address for group in groups for address in group["targets"]]
    return f"http://{addresses[0]}" if addresses else ""


def main(arguments: list[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m grafana.preview", description="Draws the dashboards as one HTML page.")
    parser.add_argument("--prometheus", metavar="URL", help="where Prometheus answers; default: the running stack's")
    parser.add_argument("--minutes", type=float, default=30, help="how far to look back")
    parser.add_argument("--out", type=Path, help="the page; default: dashboards.html in STATE_DIR")
    parser.add_argument("--strict", action="store_true", help="fail if a panel has no data")
    chosen = parser.parse_args(arguments)
    url = chosen.prometheus or running_prometheus()
    if not url:
        print(
            "preview: no Prometheus is running (`make up` starts one, `make tools` builds it); name one: --prometheus URL", file=sys.stderr
        )
        return 2
    now = time.time()
    try:
        with httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS) as client:
            page = Page(Prometheus(client, now - chosen.minutes * 60, now))
            html = page.html([json.loads((DASHBOARDS / f"{name}.json").read_text()) for name in NAMES])
    except NoAnswerError as error:
        print(f"preview: {error}", file=sys.stderr)
        return 2
    out: Path = chosen.out or Path(load(CommonSettings).state_dir, "dashboards.html")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html)
    print(f"{page.count} panels: file://{out.resolve()}")
    for name in page.empty:
        print(f"no data: {name}", file=sys.stderr)
    return 1 if chosen.strict and page.empty else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
