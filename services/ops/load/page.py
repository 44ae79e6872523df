"""The report as one page that needs nothing else: charts, tables, the command that made it. Pure."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from services.ops.load.plot import Axis, Series, line_chart, number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.ops.load.report import Report
    from services.ops.load.summary import Quantiles, Summary

_STYLE = """\
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:94rem;padding:0 1rem;background:#fff;color:#1f2328}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p{margin:.3rem 0}.d{color:#59636e}
pre{background:#f6f8fa;padding:.7rem;overflow-x:auto;border-radius:6px;white-space:pre-wrap}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(34rem,100%),1fr));gap:1rem}.charts svg{width:100%;height:auto}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem;border-bottom:1px solid #d1d9e0;text-align:right;white-space:nowrap}
th:first-child,td:first-child,td:last-child,th:last-child{text-align:left}td:last-child{white-space:normal;min-width:14rem}
.bad{color:#cf222e;font-weight:600}.good{color:#1a7f37;font-weight:600}
@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}.d{color:#9198a1}pre{background:#161b22}
th,td{border-color:#3d444d}.bad{color:#ff7b72}.good{color:#3fb950}}
"""
_READING = (
    "A request counts where it was begun, whenever its answer came. Latency: of whole answers, to the last byte. TTFT: of streams, to the"
    " first text. Gap: between two arrivals of text in one stream. Errors: all without a whole answer; clients that left are neither"
    " answers nor errors."
)
_TIME = Axis("seconds since the load began")


def page(report: Report) -> str:
    """The whole document."""
    total = sum(stage.seconds for stage in report.stages)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>Load of {escape(report.began_at)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Load on {escape(report.url)}</h1>",
        f'<p class="d">Began {escape(report.began_at)}, {number(total)} s, {sum(stage.requests for stage in report.stages)} requests.</p>',
        *_verdict(report),
        "<h2>Stages</h2>",
        _table(report.stages, "stage"),
        "<h2>Over time</h2>",
        f'<div class="charts">{"".join(_charts(report))}</div>',
        "<h2>Kinds of requests</h2>",
        _table(report.kinds, "kind"),
        "<h2>Made by</h2>",
        f"<pre>{escape(report.command)}</pre>",
        f'<p class="d">{_READING}</p>',
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _verdict(report: Report) -> list[str]:
    if not report.missed:
        return ['<p class="good">All limits were kept.</p>']
    return ['<p class="bad">Missed:</p><ul>', *(f'<li class="bad">{escape(line)}</li>' for line in report.missed), "</ul>"]


def _table(rows: Sequence[Summary], first: str) -> str:
    words = (
        "s",
        "requests",
        "offered/s",
        "answered/s",
        "errors",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "TTFT p95 ms",
        "gap p95 ms",
        "tokens/s",
        "left",
    )
    head = "".join(f"<th>{word}</th>" for word in (first, *words, "results"))
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in _cells(row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(row: Summary) -> list[str]:
    times = (row.latency.p50, row.latency.p95, row.latency.p99, row.ttft.p95, row.gap.p95)
    return [
        escape(row.stage),
        *(number(value) for value in (row.seconds, row.requests, row.offered, row.achieved)),
        f"{row.error_rate * 100:.2f} %",
        *("-" if value is None else number(value * 1000) for value in times),
        number(row.tokens_per_second),
        str(row.left),
        escape(", ".join(f"{result}: {count}" for result, count in row.results.items())),
    ]


def _charts(report: Report) -> list[str]:
    marks, began = [], 0.0
    for stage in report.stages:
        marks.append((began, stage.stage))
        began += stage.seconds

    def over_time(name: str, of: Callable[[Summary], float | None], *, is_dashed: bool = False) -> Series:
        return Series(name, [(float(moment.stage) + moment.seconds / 2, of(moment)) for moment in report.moments], is_dashed)

    def times(title: str, unit: str, of: Callable[[Summary], Quantiles]) -> str:
        lines = [
            over_time("median", lambda moment: _ms(of(moment).p50)),
            over_time("95th percentile", lambda moment: _ms(of(moment).p95)),
            over_time("99th percentile", lambda moment: _ms(of(moment).p99), is_dashed=True),
        ]
        return line_chart(title, lines, _TIME, Axis(unit, is_log=True), marks=marks)

    requests = [
        over_time("offered", lambda moment: moment.offered, is_dashed=True),
        over_time("answered", lambda moment: moment.achieved),
        over_time("without a whole answer", lambda moment: moment.offered - moment.achieved - moment.left / moment.seconds),
    ]
    return [
        line_chart("Requests", requests, _TIME, Axis("requests/s"), marks=marks),
        times("Latency of whole answers", "latency (ms)", lambda moment: moment.latency),
        times("Time to first token of streams", "TTFT (ms)", lambda moment: moment.ttft),
        times("Gaps between tokens of streams", "gap (ms)", lambda moment: moment.gap),
        line_chart("Tokens", [over_time("generated", lambda moment: moment.tokens_per_second)], _TIME, Axis("tokens/s"), marks=marks),
    ]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else max(seconds * 1000, 1e-3)
