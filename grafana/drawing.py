"""One panel as HTML: graphs by plotly, numbers and tables in the colours of their thresholds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from html import escape
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from grafana.units import marks, written

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from grafana.asking import Exemplar, Series

COLORS = {
    "green": "#73bf69",
    "yellow": "#f2cc0c",
    "orange": "#ff9830",
    "red": "#f2495c",
    "blue": "#5794f2",
    "purple": "#b877d9",
    "text": "#9fa7b3",
}
_PALETTE = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#fade2a", "#ff7383", "#96d98d")
_GAP_SECONDS = 60
_GRID = "#2c3235"
_BINS = 60
_EXEMPLARS_A_BIN = 3
NO_DATA = '<div class="empty">no data</div>'
IDLE = '<div class="idle">idle: nothing to measure</div>'


@dataclass(frozen=True)
class Around:
    """What all graphs of a dashboard share: the range, and when pods were started in it."""

    start: float
    end: float
    restarts: Sequence[float]


def is_empty(answers: Sequence[Sequence[Series]]) -> bool:
    """Whether no query answered anything."""
    return not any(answers)


def color_of(value: float, steps: Sequence[Mapping[str, Any]]) -> str:
    """The colour of the last threshold that `value` has reached."""
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return COLORS[reached[-1]]


def worded(value: float, defaults: Mapping[str, Any]) -> str:
    """The number as the panel wants it written, or its word."""
    for mapping in defaults.get("mappings", []):
        if mapping["type"] == "value" and f"{value:g}" in mapping["options"]:
            return str(mapping["options"][f"{value:g}"]["text"])
        if mapping["type"] == "special" and math.isnan(value):
            return str(mapping["options"]["result"]["text"])
    return written(value, defaults["unit"], defaults.get("decimals"))


def number(panel: Mapping[str, Any], answers: Sequence[Sequence[Series]]) -> str:
    """A stat: the last value, large, over the way it went."""
    defaults = panel["fieldConfig"]["defaults"]
    series = answers[0][0]
    color = COLORS["text"] if math.isnan(series.last) else color_of(series.last, defaults["thresholds"]["steps"])
    big = f'<div class="big" style="color:{color}">{escape(worded(series.last, defaults))}</div>'
    if panel["options"]["graphMode"] == "none" or len(series.values) < 2:
        return big
    times, values = _with_gaps(series)
    figure = go.Figure(go.Scatter(x=times, y=values, mode="lines", line={"color": color, "width": 1}, fill="tozeroy", hoverinfo="skip"))
    _bare(figure)
    figure.update_xaxes(visible=False)
    top = max((value for value in values if value is not None), default=1.0) or 1.0
    figure.update_yaxes(visible=False, range=[0, top * 1.15])
    return f'{big}<div class="spark">{_html(figure)}</div>'


def rows(panel: Mapping[str, Any], answers: Sequence[Sequence[Series]]) -> str:
    """A table: one row for each value of the label that the queries share, one column a query."""
    organize = next(step["options"] for step in panel["transformations"] if step["id"] == "organize")
    names = {old: organize["renameByName"][old] for old in sorted(organize["renameByName"], key=organize["indexByName"].get)}
    label = next(old for old in names if not old.startswith("Value #"))
    overrides = {
        item["matcher"]["options"]: {one["id"]: one["value"] for one in item["properties"]} for item in panel["fieldConfig"]["overrides"]
    }
    keys = sorted({series.labels[label] for answer in answers for series in answer}, key=_natural)
    head = "".join(f"<th>{escape(name)}</th>" for name in names.values())
    body = ""
    for key in keys:
        cells = f"<td>{escape(key)}</td>"
        for target, answer in zip(panel["targets"], answers, strict=True):
            value = next((series.last for series in answer if series.labels[label] == key), math.nan)
            look = overrides[names[f"Value #{target['refId']}"]]
            color = COLORS["text"] if math.isnan(value) else color_of(value, look["thresholds"]["steps"])
            cells += f'<td style="color:{color}">{escape(worded(value, look))}</td>'
        body += f"<tr>{cells}</tr>"
    return f"<table><tr>{head}</tr>{body}</table>"


def lines(panel: Mapping[str, Any], answers: Sequence[Sequence[Series]], points: Sequence[Exemplar], around: Around) -> str:
    """A graph: lines, threshold lines, points that are requests, marks where a pod was started."""
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    shown = sorted((series for answer in answers for series in answer), key=lambda series: _natural(series.name))
    if not any(math.isfinite(value) for series in shown for value in series.values):
        return IDLE
    fixed = {item["matcher"]["options"]: _fixed(item) for item in panel["fieldConfig"]["overrides"] if item["matcher"]["id"] == "byName"}
    is_stacked = custom.get("stacking", {}).get("mode") == "normal"
    figure = go.Figure()
    for index, series in enumerate(shown):
        _draw(figure, series, fixed.get(series.name) or _PALETTE[index % len(_PALETTE)], defaults, is_stacked=is_stacked)
    high = _highest(shown, is_stacked=is_stacked)
    high = max(high, custom.get("axisSoftMax") or 0.0) * 1.05 or 1.0
    seen = _slowest([point for point in points if point.value <= high * 1.5], around)
    high = max([high, *[point.value * 1.05 for point in seen]])
    _draw_exemplars(figure, seen, defaults)
    _draw_limits(figure, defaults, high)
    for moment in around.restarts:
        figure.add_vline(x=_date(moment), line={"color": COLORS["purple"], "width": 1, "dash": "dot"})
    _bare(figure)
    _axes(figure, defaults, shown, high)
    figure.update_xaxes(range=[_date(around.start), _date(around.end)])
    return _html(figure)


def _draw(figure: go.Figure, series: Series, color: str, defaults: Mapping[str, Any], *, is_stacked: bool) -> None:
    times, values = _with_gaps(series)
    text = ["" if value is None else written(value, defaults["unit"], defaults.get("decimals")) for value in values]
    look: dict[str, Any] = {"stackgroup": "all", "fillcolor": _faded(color, defaults["custom"]["fillOpacity"])} if is_stacked else {}
    if is_stacked:
        values = [value or 0.0 for value in values]
    line = {"color": color, "width": defaults["custom"]["lineWidth"]}
    figure.add_trace(go.Scatter(x=times, y=values, name=series.name, mode="lines", line=line, text=text, hovertemplate="%{text}", **look))


def _draw_exemplars(figure: go.Figure, points: Sequence[Exemplar], defaults: Mapping[str, Any]) -> None:
    if points:
        marker = {"symbol": "diamond", "size": 5, "color": COLORS["text"], "opacity": 0.55}
        text = [f"{written(point.value, defaults['unit'])} · trace {point.trace_id}" for point in points]
        x, y = [_date(point.time) for point in points], [point.value for point in points]
        figure.add_trace(go.Scatter(x=x, y=y, mode="markers", marker=marker, text=text, hovertemplate="%{text}", name="", showlegend=False))


def _slowest(points: Sequence[Exemplar], around: Around) -> list[Exemplar]:
    """The few that one would click on: the slowest of each short while."""
    bins: dict[int, list[Exemplar]] = {}
    for point in sorted(points, key=lambda point: -point.value):
        of_bin = bins.setdefault(int((point.time - around.start) / (around.end - around.start) * _BINS), [])
        if len(of_bin) < _EXEMPLARS_A_BIN:
            of_bin.append(point)
    return [point for of_bin in bins.values() for point in of_bin]


def _draw_limits(figure: go.Figure, defaults: Mapping[str, Any], high: float) -> None:
    if defaults["custom"]["thresholdsStyle"]["mode"] == "off":
        return
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is not None and 0 < step["value"] <= high:
            figure.add_hline(y=step["value"], line={"color": COLORS[step["color"]], "width": 1, "dash": "dash"})


def _axes(figure: go.Figure, defaults: Mapping[str, Any], shown: Sequence[Series], high: float) -> None:
    is_log = defaults["custom"].get("scaleDistribution", {}).get("type") == "log"
    low = min((value for series in shown for value in series.values if value > 0), default=0.1) / 1.3 if is_log else 0.0
    ticks = marks(low, high, defaults["unit"], log=is_log)
    text = [written(tick, defaults["unit"]) for tick in ticks]
    span = [math.log10(low), math.log10(high)] if is_log else [low, high]
    figure.update_yaxes(type="log" if is_log else "linear", range=span, tickvals=ticks, ticktext=text, gridcolor=_GRID, zeroline=False)
    figure.update_xaxes(gridcolor=_GRID, nticks=6, tickformat="%H:%M")
    legend = {"orientation": "h", "y": -0.12, "x": 0, "yanchor": "top", "font": {"size": 11}}
    figure.update_layout(showlegend=True, legend=legend, hovermode="x unified", margin={"l": 64, "r": 12, "t": 6, "b": 30})


def _highest(shown: Sequence[Series], *, is_stacked: bool) -> float:
    if not is_stacked:
        return max(value for series in shown for value in series.values if math.isfinite(value))
    sums: dict[float, float] = {}
    for series in shown:
        for at, value in zip(series.times, series.values, strict=True):
            sums[at] = sums.get(at, 0.0) + (value if math.isfinite(value) else 0.0)
    return max(sums.values())


def _with_gaps(series: Series) -> tuple[list[datetime], list[float | None]]:
    times: list[datetime] = []
    values: list[float | None] = []
    before = series.times[0] if series.times else 0.0
    for at, value in zip(series.times, series.values, strict=True):
        if at - before > _GAP_SECONDS:
            times.append(_date(before + 1))
            values.append(None)
        times.append(_date(at))
        values.append(value if math.isfinite(value) else None)
        before = at
    return times, values


def _fixed(override: Mapping[str, Any]) -> str | None:
    return next((COLORS[one["value"]["fixedColor"]] for one in override["properties"] if one["id"] == "color"), None)


def _faded(color: str, percent: int) -> str:
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{percent / 100:g})"


def _natural(name: str) -> tuple[str, int]:
    found = re.search(r"(\d+)$", name)
    return (name[: found.start()], int(found[1])) if found else (name, 0)


def _date(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def _bare(figure: go.Figure) -> None:
    clear = "rgba(0,0,0,0)"
    figure.update_layout(
        paper_bgcolor=clear, plot_bgcolor=clear, font={"color": "#ccccdc", "size": 11}, margin={"l": 0, "r": 0, "t": 0, "b": 0}
    )
    figure.update_layout(showlegend=False, autosize=True)


def _html(figure: go.Figure) -> str:
    options = {"displayModeBar": False, "responsive": True}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=options, default_width="100%", default_height="100%"))
