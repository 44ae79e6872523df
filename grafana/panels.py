"""The few kinds of panel that the dashboards are made of, as short functions over Grafana's builders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from grafana_foundation_sdk.builders import common as build
from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

if TYPE_CHECKING:
    from collections.abc import Mapping

Built: TypeAlias = Any
"""A builder of the library, whose types need a newer Python than our oldest."""

PROMETHEUS = common.DataSourceRef(type_val="prometheus", uid="prometheus")
MIN_STEP = "15s"
"""Makes `$__rate_interval` a minute, the window of the recording rules, when the range is short."""
ENGINE = 'job="engine"'
IDLE = "idle"
"""What a quantile or a ratio of nothing is called: no requests is no fault."""

GREEN, YELLOW, RED, BLUE, GREY = "green", "yellow", "red", "blue", "text"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Query:
    """One question to Prometheus and what its answers are called in the legend."""

    expr: str
    legend: str = ""
    exemplars: bool = False
    """Only the exemplars of this query are drawn, as points that lead to traces; its line is not."""


@dataclass(frozen=True)
class Limits:
    """Where good ends: colours from a value on; `line` draws them into graphs."""

    steps: tuple[tuple[float | None, str], ...]
    line: bool = True

    def build(self) -> board.ThresholdsConfig:
        """As Grafana wants it: the first step has no value."""
        steps = [dashboard.Threshold(value, color) for value, color in self.steps]
        return board.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)


FACT = Limits(((None, BLUE),), line=False)
"""A fact that has no good or bad."""
ZERO = Limits(((None, GREEN), (1e-9, YELLOW)), line=False)
"""Anything above nothing is worth a look."""


def at_most(limit: float, warn: float | None = None, *, line: bool = True) -> Limits:
    """Good below `warn` (four fifths of the limit), bad from `limit` on."""
    return Limits(((None, GREEN), (limit * 0.8 if warn is None else warn, YELLOW), (limit, RED)), line)


def at_least(good: float, bad: float) -> Limits:
    """Bad below `bad`, good from `good` on."""
    return Limits(((None, RED), (bad, YELLOW), (good, GREEN)))


@dataclass(frozen=True)
class Panel:
    """What every panel says of itself."""

    title: str
    description: str
    unit: str
    limits: Limits = FACT
    decimals: int | None = None


def number(panel: Panel, expr: str, *, instant: bool = False, words: Mapping[float, str] | None = None) -> Built:
    """One number in its threshold's colour, with the way it went behind it (not for `instant`, which judges the whole range)."""
    made = stat.Panel().targets([target(0, Query(expr, panel.title), instant=instant)])
    made = made.graph_mode(common.BigValueGraphMode.NONE if instant else common.BigValueGraphMode.AREA)
    made = made.color_mode(common.BigValueColorMode.VALUE).reduce_options(build.ReduceDataOptions().calcs(["lastNotNull"]))
    made = made.color_scheme(board.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS)).mappings(mappings(words or {}))
    return described(made, panel)


def lines(panel: Panel, *queries: Query, colors: Mapping[str, str] | None = None, stack: bool = False, log: bool = False) -> Built:
    """Series over time; `colors` by the series' names, others keep one colour a name on all panels."""
    made = timeseries.Panel().targets([target(index, query) for index, query in enumerate(queries)])
    made = (
        made.line_width(0 if stack else 2)
        .fill_opacity(60 if stack else 8)
        .show_points(common.VisibilityMode.NEVER)
        .span_nulls(60_000)
        .axis_soft_min(0)
    )
    made = made.color_scheme(board.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    made = made.legend(
        build.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).placement(common.LegendPlacement.BOTTOM).show_legend(True)
    )
    made = made.tooltip(build.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
    style = common.GraphThresholdsStyleMode.DASHED if panel.limits.line else common.GraphThresholdsStyleMode.OFF
    made = made.thresholds_style(build.GraphThresholdsStyleConfig().mode(style))
    if panel.limits.line:
        # The promise stays in view: how far a curve is from it is what the panel is asked.
        made = made.axis_soft_max(max(value for value, _ in panel.limits.steps if value is not None))
    if stack:
        made = made.stacking(build.StackingConfig().mode(common.StackingMode.NORMAL).group("all"))
    if log:
        made = made.scale_distribution(build.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10))
    for name, color in (colors or {}).items():
        made = made.override_by_name(name, [dashboard.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color})])
    for index, query in enumerate(queries):
        if query.exemplars:
            made = made.override_by_query(LETTERS[index], _only_exemplars())
    return described(made, panel)


def _only_exemplars() -> list[dashboard.DynamicConfigValue]:
    # Not hidden with `viz`: Grafana draws exemplars only of series that it shows. A line of no width is shown and not seen.
    hidden = {"legend": True, "tooltip": True, "viz": False}
    properties: dict[str, object] = {"custom.lineWidth": 0, "custom.fillOpacity": 0, "custom.hideFrom": hidden}
    return [dashboard.DynamicConfigValue(name, value) for name, value in properties.items()]


def or_nothing(expr: str, label: str) -> str:
    """The series of `expr`, or one at 0 while there is none: counters with labels appear with the first request."""
    return f'{expr} or (label_replace(vector(0), "{label}", "nothing yet", "", "") unless on () {expr})'


def target(index: int, query: Query, *, instant: bool = False, table: bool = False) -> Built:
    """One query of a panel, named by its letter."""
    made = prometheus.Dataquery().datasource(PROMETHEUS).ref_id(LETTERS[index]).expr(query.expr).legend_format(query.legend)
    made = made.format(PromQueryFormat.TABLE if table else PromQueryFormat.TIME_SERIES)
    return made.instant() if instant else made.range().interval(MIN_STEP).exemplar(query.exemplars)


def mappings(words: Mapping[float, str]) -> list[Any]:
    """Words for some values, and for none."""
    texts = {f"{value:g}": dashboard.ValueMappingResult(text=text) for value, text in words.items()}
    nothing = dashboard.ValueMappingResult(text=IDLE, color=GREY)
    options = dashboard.DashboardSpecialValueMapOptions(match=dashboard.SpecialValueMatch.NULL_AND_NAN, result=nothing)
    return [*([dashboard.ValueMap(texts)] if texts else []), dashboard.SpecialValueMap(options)]


def described(made: Built, panel: Panel) -> Built:
    """The builder with all that every panel says of itself."""
    made = made.title(panel.title).description(panel.description).unit(panel.unit).thresholds(panel.limits.build()).datasource(PROMETHEUS)
    return made if panel.decimals is None else made.decimals(panel.decimals)
