"""The dashboards and what they ask: nothing that nobody measures, nothing unexplained, nothing written by hand."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from grafana import build, slo
from grafana.units import UNITS
from services.telemetry.edge_metrics import EdgeMetrics
from services.telemetry.genai import HISTOGRAMS
from services.telemetry.metrics import SECONDS_BUCKETS, Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PROVISIONING = ROOT / "grafana" / "provisioning"
BOARDS: list[dict[str, Any]] = [json.loads(path.read_text()) for path in sorted(build.DASHBOARDS.glob("*.json"))]
PANELS = [(board, panel) for board in BOARDS for panel in board["panels"] if panel["type"] != "row"]
NAMED = pytest.mark.parametrize(
    "panel", [panel for _, panel in PANELS], ids=[f"{board['uid']}-{panel['title']}" for board, panel in PANELS]
)

FOREIGN = {
    # Envoy's, seen on the binary; those without a comment are what their names say.
    "envoy_cluster_circuit_breakers_default_cx_open",
    "envoy_cluster_circuit_breakers_default_cx_pool_open",
    "envoy_cluster_circuit_breakers_default_remaining_cx",
    "envoy_cluster_circuit_breakers_default_remaining_pending",
    "envoy_cluster_circuit_breakers_default_remaining_rq",
    "envoy_cluster_circuit_breakers_default_rq_open",
    "envoy_cluster_circuit_breakers_default_rq_pending_open",
    "envoy_cluster_membership_healthy",
    "envoy_cluster_membership_total",
    "envoy_cluster_outlier_detection_ejections_active",
    "envoy_cluster_upstream_cx_active",
    "envoy_cluster_upstream_cx_connect_fail",
    "envoy_cluster_upstream_cx_destroy_remote_with_active_rq",  # a pod that dies shows here, not among the resets (HTTP/1.1 has none)
    "envoy_cluster_upstream_cx_none_healthy",
    "envoy_cluster_upstream_rq",  # by status; what was tried again counts elsewhere, so this is what clients got
    "envoy_cluster_upstream_rq_active",
    "envoy_cluster_upstream_rq_pending_active",
    "envoy_cluster_upstream_rq_per_try_timeout",
    "envoy_cluster_upstream_rq_retry",
    "envoy_cluster_upstream_rq_retry_limit_exceeded",
    "envoy_cluster_upstream_rq_retry_overflow",  # the retry budget was used up
    "envoy_cluster_upstream_rq_retry_success",
    "envoy_cluster_upstream_rq_time_bucket",  # milliseconds
    "envoy_cluster_upstream_rq_timeout",
    "envoy_cluster_upstream_rq_total",
    "envoy_http_local_rate_limit_rate_limited",  # by limiter: limit_client, limit_address
    "envoy_http_downstream_cx_active",
    "envoy_http_downstream_rq_active",
    "envoy_http_downstream_rq_total",
    "envoy_http_downstream_rq_tx_reset",  # answers that broke after they had begun: no status tells of them
    "envoy_http_downstream_rq_xx",  # by class; Envoy's own answers included
    "envoy_overload_envoy_resource_monitors_fixed_heap_pressure",  # percent of what the overload manager allows
    "envoy_overload_envoy_resource_monitors_global_downstream_max_connections_pressure",
    # prometheus_client's ProcessCollector, in each pod.
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",  # changes when a pod is started again
    # The collector's connector span_metrics (otel-collector/config.yaml), from all spans before sampling.
    "traces_span_metrics_calls_total",
}
_SUFFIXES = ("_bucket", "_sum", "_count")
_NAME = re.compile(r"\b(?:llm|convoy|envoy|gen_ai|process|traces|service|pod|edge)[_:][a-zA-Z0-9_:]+")


def rules() -> dict[str, str]:
    """Recording rules: name -> expression."""
    files = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "prometheus" / "rules").glob("*.yaml"))]
    return {rule["record"]: rule["expr"] for file in files for group in file["groups"] for rule in group["rules"] if "record" in rule}


def declared() -> set[str]:
    """The names of all series that somebody makes."""
    made = [*Metrics("demo").registry.collect(), *EdgeMetrics().registry.collect()]
    families = [family for family in made if family.name.startswith(("llm_", "convoy_"))]
    ours = {sample for family in families for sample in _exposed(family.name, family.type)}
    pushed = {f"{name.replace('.', '_')}_seconds{suffix}" for name in HISTOGRAMS for suffix in _SUFFIXES}
    return ours | pushed | rules().keys() | FOREIGN


def _exposed(name: str, kind: str) -> list[str]:
    if kind == "histogram":
        return [name + suffix for suffix in _SUFFIXES]
    return [f"{name}_total"] if kind == "counter" else [name]


def named_in(expr: str) -> set[str]:
    """The metrics that a query names: strings of labels and what it groups by aside."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    bare = re.sub(r"\b(by|on|without|ignoring)\s*\([^)]*\)", "", bare)
    return set(_NAME.findall(re.sub(r"\{[^}]*\}", "", bare)))


def asked() -> Iterator[tuple[str, str]]:
    """Every query of dashboards, rules and provisioning, with where it stands."""
    for board, panel in PANELS:
        yield from ((f"{board['uid']}: {panel['title']}", target["expr"]) for target in panel["targets"])
    for board in BOARDS:
        yield from ((f"{board['uid']}: {item['name']}", item["expr"]) for item in board["annotations"]["list"] if "expr" in item)
        yield from ((f"{board['uid']}: ${item['name']}", item["query"]) for item in board.get("templating", {}).get("list", []))
    yield from ((f"rule {name}", expr) for name, expr in rules().items())
    for source in sources():
        queries = source.get("jsonData", {}).get("tracesToMetrics", {}).get("queries", [])
        yield from ((f"source {source['name']}: {query['name']}", query["query"]) for query in queries)


def sources() -> list[dict[str, Any]]:
    """The provisioned data sources."""
    found: list[dict[str, Any]] = yaml.safe_load((PROVISIONING / "datasources" / "convoy.yaml").read_text())["datasources"]
    return found


@pytest.mark.skipif(sys.version_info < build.NEEDS, reason="grafana-foundation-sdk needs Python 3.11")
def test_json_is_what_the_code_makes() -> None:
    """Nobody edits the JSON by hand, and two builds are equal to the byte."""
    assert build.stale() == [], "run `make dashboards`"
    assert build.texts() == build.texts()
    assert all(text.endswith("}\n") for text in build.texts().values())


def test_the_four_dashboards_are_there_and_know_each_other() -> None:
    """Addresses that may be linked to do not change, and each dashboard leads to the others."""
    assert {board["uid"] for board in BOARDS} == {"convoy-service", "convoy-pods", "convoy-edge", "convoy-cost"}
    for board in BOARDS:
        assert board["tags"] == ["convoy"]
        assert [(link["type"], link["tags"]) for link in board["links"]] == [("dashboards", ["convoy"])]
        assert board["description"].endswith("?"), "a dashboard answers a question"
        assert (board["refresh"], board["time"]["from"], board["editable"]) == ("5s", "now-30m", False)


def test_each_metric_that_is_asked_for_is_measured_by_somebody() -> None:
    """A renamed metric must not leave a panel or a rule empty without anybody noticing."""
    known = declared()
    unknown = {where: sorted(named_in(expr) - known) for where, expr in asked() if named_in(expr) - known}
    assert not unknown
    assert all(named_in(expr) for _, expr in asked()), "a query that names nothing was not understood"


def test_the_list_of_foreign_metrics_holds_nothing_that_nobody_asks_for() -> None:
    """A list of exceptions that only grows means nothing."""
    used = {name for _, expr in asked() for name in named_in(expr)}
    assert used >= FOREIGN, sorted(FOREIGN - used)


@NAMED
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    """Title, description, unit and thresholds, for people who see it for the first time at night."""
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert defaults["unit"] in UNITS
    steps = defaults["thresholds"]["steps"]
    assert steps[0]["value"] is None
    assert [step["value"] for step in steps[1:]] == sorted(step["value"] for step in steps[1:])
    assert {step["color"] for step in steps} != {"green"}, "a panel that is always green tells nothing"


@NAMED
def test_a_panel_asks_a_provisioned_source(panel: dict[str, Any]) -> None:
    """An unknown uid is a panel that only says "not found"."""
    known = {source["uid"] for source in sources()}
    assert known == {"prometheus", "jaeger", "alertmanager"}
    for asked_of in [panel, *panel["targets"]]:
        assert asked_of["datasource"]["uid"] in known


def test_variables_and_marks_ask_a_provisioned_source() -> None:
    """Likewise."""
    asking = [item for board in BOARDS for item in [*board["annotations"]["list"], *board.get("templating", {}).get("list", [])]]
    assert {item["datasource"]["uid"] for item in asking} == {"prometheus"}


@NAMED
def test_a_graph_has_a_name_for_each_line(panel: dict[str, Any]) -> None:
    """Without a legend Grafana writes the whole query."""
    targets = panel["targets"]
    assert [target["refId"] for target in targets] == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(targets)])
    assert panel["type"] == "table" or all(target["legendFormat"] for target in targets)


@pytest.mark.parametrize("board", BOARDS, ids=[board["uid"] for board in BOARDS])
def test_panels_fill_the_grid_without_overlap(board: dict[str, Any]) -> None:
    """Each cell belongs to one panel, and each line is whole."""
    cells = [(x, y) for panel in board["panels"] for x, y in _cells(panel["gridPos"])]
    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} == set(range(24))
    assert len(cells) == 24 * len({y for _, y in cells})


def _cells(place: dict[str, int]) -> list[tuple[int, int]]:
    return [(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])]


def test_thresholds_mean_the_promises() -> None:
    """The numbers of slo.py are where the colours change."""
    limits = {panel["title"]: [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]] for _, panel in PANELS}
    assert limits["Do requests fail?"][-1] == pytest.approx(slo.ERROR_BUDGET)
    assert limits["Do first tokens come in time?"][-1] == slo.FIRST_TOKEN_SECONDS
    assert limits["Do tokens flow?"][-1] == slo.BETWEEN_TOKENS_SECONDS in SECONDS_BUCKETS


def test_latency_leads_to_traces_and_back() -> None:
    """Each graph of latency has exemplars, their label is the one that Prometheus stores, and a span leads to its pod's metrics."""
    with_exemplars = [panel["title"] for _, panel in PANELS if any(target.get("exemplar") for target in panel["targets"])]
    assert with_exemplars == ["How long does a whole answer take?", "How long to the first token?", "How long between two tokens?"]
    by_uid = {source["uid"]: source for source in sources()}
    [destination] = by_uid["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert (destination["name"], destination["datasourceUid"]) == ("trace_id", "jaeger")
    back = by_uid["jaeger"]["jsonData"]["tracesToMetrics"]
    assert back["datasourceUid"] == "prometheus"
    assert all("$$__tags" in query["query"] for query in back["queries"]), "a single $ would be a variable of the environment"


def test_provisioning_is_read_only() -> None:
    """What is looked at is what is in git."""
    [provider] = yaml.safe_load((PROVISIONING / "dashboards" / "convoy.yaml").read_text())["providers"]
    assert provider["allowUiUpdates"] is False
    assert not any(source["editable"] for source in sources())
    assert [source["url"] for source in sources()] == ["$PROMETHEUS_URL", "$JAEGER_URL", "$ALERTMANAGER_URL"]
