"""Writes `docs/metrics.md` from what declares the metrics: `services/telemetry` and `prometheus/rules`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from services.telemetry.edge_metrics import EdgeMetrics  # noqa: E402 - found only with the checkout on the path
from services.telemetry.genai import HISTOGRAMS  # noqa: E402 - likewise
from services.telemetry.metrics import SECONDS_BUCKETS, TOKENS_BUCKETS, Metrics  # noqa: E402 - likewise

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry

_UNITS = {"seconds": "seconds", "bytes": "bytes", "tokens": "tokens", "ratio": "0 to 1", "second": "per second", "hour": "per hour"}

_HEAD = """\
# Metrics

Made by `scripts/write_metrics_md.py` from `services/telemetry/` and `prometheus/rules/`; a test compares. Labels are bounded: the served
model, a route, a class of statuses, a reason of a few words; never a user's text, key or id.

## A pod (scraped, job `engine`)

Prometheus adds `instance`, the pod's name: a pod that is started again is the same instance. Histograms of seconds have the bounds
{seconds}: generation spans five orders of magnitude, and about three bounds a decade put a quantile within a factor of 2.5 of the truth.
Histograms of tokens have the bounds {tokens}.

"""
_GENAI = """
## OpenTelemetry's GenAI metrics (pushed over OTLP)

Histograms in seconds by operation, model and `error.type`, with exemplars: a point on a graph leads to the trace of a request. Labels
`service_name` and `service_instance_id` say which pod. For rates and quantiles take `llm_*`, which are scraped and miss nothing.

"""
_EDGE = """
## The edge (scraped, job `edge`)

What the edge has taken over of settings, clients file and Envoy's files, and whether Envoy runs it. `convoy edge` shows the same.

"""
_SPANS = """
## Span metrics (made by the collector)

`traces_span_metrics_calls_total` and `traces_span_metrics_duration_seconds`, by `service_name`, `span_name`, `span_kind` and
`status_code`: taken before tail sampling, so they are true as far as the head sampled (`TRACE_SAMPLE_PERCENT=100`). They are for exemplars
and the service map.

## Envoy (scraped, job `envoy`)

Envoy's own names: `envoy_http_downstream_*` for clients (`envoy_http_conn_manager_prefix="clients"`), `envoy_cluster_*` for the pods
(`envoy_cluster_name="engine"`): `upstream_rq_retry*`, `outlier_detection_*`, `circuit_breakers_*`, `upstream_rq_time`.
`envoy_http_local_rate_limit_rate_limited` counts answers 429 of the edge's limits, by `envoy_local_http_ratelimit_prefix`:
`limit_client` or `limit_address`.

## Recording rules

"""


def text() -> str:
    """The whole page."""
    head = _HEAD.format(seconds=_listed(SECONDS_BUCKETS), tokens=_listed(TOKENS_BUCKETS))
    genai = [[f"`{name}`", f"`{name.replace('.', '_')}_seconds`", meaning] for name, meaning in HISTOGRAMS.items()]
    return "".join(
        [
            head,
            _table(["name", "kind", "unit", "labels", "meaning"], _rows(Metrics("model").registry)),
            _EDGE,
            _table(["name", "kind", "unit", "labels", "meaning"], _rows(EdgeMetrics().registry)),
            _GENAI,
            _table(["name", "in Prometheus", "meaning"], genai),
            _SPANS,
            _table(["name", "of"], _rule_rows()),
        ]
    )


def _rows(registry: CollectorRegistry) -> list[list[str]]:
    collectors = dict.fromkeys(registry._collector_to_names)  # noqa: SLF001 - the only list of them in the order of declaration
    rows = []
    for collector in collectors:
        for family in collector.collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = getattr(collector, "_labelnames", ())
            rows.append([f"`{name}`", family.type, _unit(family.name), ", ".join(labels), family.documentation])
    return rows


def _unit(name: str) -> str:
    return next((unit for suffix, unit in _UNITS.items() if name.endswith(f"_{suffix}")), "count")


def _rule_rows() -> list[list[str]]:
    rules: list[dict[str, Any]] = []
    for path in sorted((ROOT / "prometheus" / "rules").glob("*.yaml")):
        rules += [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
    return [[f"`{rule['record']}`", f"`{' '.join(rule['expr'].split())}`"] for rule in rules if "record" in rule]


def _listed(bounds: Iterable[float]) -> str:
    return ", ".join(f"{bound:g}" for bound in bounds)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    (ROOT / "docs" / "metrics.md").write_text(text())
