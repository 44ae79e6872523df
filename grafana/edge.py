"""What does Envoy do? Retries, ejections, open circuits, refusals, and how long pods take, as the edge sees it.

A counter by status or reason is not there before it first counts, and Envoy may be asked only for what counted: `or vector(0)`.
"""

from __future__ import annotations

from grafana import slo
from grafana.boards import Board, Section
from grafana.panels import ENGINE, Limits, Panel, Query, at_least, at_most, lines, number

_CLUSTER = 'job="envoy", envoy_cluster_name="engine"'
_CLIENTS = 'job="envoy", envoy_http_conn_manager_prefix="clients"'
_RETRIES = at_most(slo.RETRY_SHARE, slo.RETRY_SHARE / 4)
_EJECTED = Limits(((None, "green"), (1, "red")), line=False)
_NEVER = Limits(((None, "green"), (1e-9, "yellow"), (1, "red")), line=False)
_BREAKER = at_most(slo.BREAKER_SHARE)
_PRESSURE = at_most(95, 90)
_BREAKERS = "envoy_cluster_circuit_breakers_default"


def _value(metric: str, labels: str = _CLUSTER) -> str:
    return f"(sum({metric}{{{labels}}}) or vector(0))"


def _rate(metric: str, labels: str = _CLUSTER) -> str:
    return f"(sum(rate({metric}{{{labels}}}[$__rate_interval])) or vector(0))"


def _now() -> Section:
    pods = Panel("Does Envoy see all pods?", "Share of the known pods that it would use.", "percentunit", at_least(1, 0.5), decimals=0)
    retried = Panel(
        "How much is retried?",
        f"Share of tries that were second ones; each request has one. Red from {slo.RETRY_SHARE:.0%} on.",
        "percentunit",
        _RETRIES,
    )
    ejected = Panel("Pods ejected now", "Pods that broke too often and rest. Healthy is 0.", "none", _EJECTED, decimals=0)
    circuits = Panel(
        "Open circuits",
        "Breakers that refuse requests now. Healthy is 0: pods refuse first, and better. Retries have their own panel.",
        "none",
        _EJECTED,
        decimals=0,
    )
    refused = Panel("Answers 429 a second", "Refused in time, with Retry-After, after a try elsewhere.", "reqps", _NEVER)
    slow = Panel(
        "Upstream time, p95", "From passing a request on to the answer's last byte, in 5 minutes. A fact: it grows with answers.", "ms"
    )
    opened = " + ".join(_value(f"{_BREAKERS}_{kind}_open") for kind in ("cx", "cx_pool", "rq", "rq_pending"))
    return Section(
        "",
        5,
        (
            number(pods, f"{_value('envoy_cluster_membership_healthy')} / clamp_min({_value('envoy_cluster_membership_total')}, 1)"),
            number(retried, f"edge:retries:rate1m / clamp_min({_rate('envoy_cluster_upstream_rq_total')}, 1e-9)"),
            number(ejected, _value("envoy_cluster_outlier_detection_ejections_active")),
            number(circuits, opened),
            number(refused, _rate("envoy_cluster_upstream_rq", f'{_CLUSTER}, envoy_response_code="429"')),
            number(slow, _upstream_time(0.95)),
        ),
    )


def _upstream_time(quantile: float) -> str:
    return f"histogram_quantile({quantile:g}, sum by (le) (rate(envoy_cluster_upstream_rq_time_bucket{{{_CLUSTER}}}[5m])))"


def _clients() -> Section:
    answers = Panel("What do clients get?", "Answers a second by class, those that Envoy makes itself included.", "reqps")
    retries = Panel(
        "Do retries help?",
        "A second; what a second pod answered well is hidden from clients. Given up: the second try failed, too.",
        "reqps",
    )
    refused = Panel("Who is refused?", "A second. Pods refuse by reason; clients see a 429 only if the second pod refused, too.", "reqps")
    classes = {"2xx": "green", "3xx": "blue", "4xx": "yellow", "5xx": "red"}
    given_up = f"{_rate('envoy_cluster_upstream_rq_retry_limit_exceeded')} + {_rate('envoy_cluster_upstream_rq_retry_overflow')}"
    return Section(
        "What clients see",
        8,
        (
            lines(
                answers,
                Query('edge:requests:rate1m{envoy_response_code_class!="1"}', "{{envoy_response_code_class}}xx"),
                stack=True,
                colors=classes,
            ),
            lines(
                retries,
                Query("edge:retries:rate1m", "tried again"),
                Query(_rate("envoy_cluster_upstream_rq_retry_success"), "answered well then"),
                Query(given_up, "given up"),
                colors={"tried again": "yellow", "answered well then": "green", "given up": "red"},
            ),
            lines(
                refused,
                Query(_rate("envoy_cluster_upstream_rq", f'{_CLUSTER}, envoy_response_code="429"'), "429 to clients"),
                Query(f"sum by (reason) (rate(llm_admission_rejected_total{{{ENGINE}}}[$__rate_interval]))", "pods: {{reason}}"),
                colors={"429 to clients": "red"},
            ),
        ),
    )


def _upstream() -> Section:
    pods = Panel(
        "Which pods may answer?", "Pods that Envoy knows, would use, and has ejected. Healthy: none ejected.", "none", _EJECTED, decimals=0
    )
    breaks = Panel(
        "What breaks on the way to pods?",
        "A second; healthy is 0. Only what broke after its first byte reaches clients: Envoy tries the rest on another pod.",
        "cps",
        _NEVER,
    )
    times = Panel("How long do pods take?", "To the answer's last byte, 5 minutes. A fact: it grows with answers.", "ms")
    causes = {
        "refused": ("envoy_cluster_upstream_cx_connect_fail", _CLUSTER),
        "pod gone": ("envoy_cluster_upstream_cx_destroy_remote_with_active_rq", _CLUSTER),
        "slow to begin": ("envoy_cluster_upstream_rq_per_try_timeout", _CLUSTER),
        "too long": ("envoy_cluster_upstream_rq_timeout", _CLUSTER),
        "no pod": ("envoy_cluster_upstream_cx_none_healthy", _CLUSTER),
        "answer broken": ("envoy_http_downstream_rq_tx_reset", _CLIENTS),
    }
    return Section(
        "Pods as Envoy sees them",
        8,
        (
            lines(
                pods,
                Query(_value("envoy_cluster_membership_total"), "known"),
                Query(_value("envoy_cluster_membership_healthy"), "in use"),
                Query(_value("envoy_cluster_outlier_detection_ejections_active"), "ejected"),
                colors={"known": "blue", "in use": "green", "ejected": "red"},
            ),
            lines(breaks, *[Query(_rate(*counted), name) for name, counted in causes.items()]),
            lines(
                times,
                *[Query(_upstream_time(percent / 100), f"p{percent}") for percent in (50, 95, 99)],
                colors={"p50": "blue", "p95": "orange", "p99": "purple"},
            ),
        ),
    )


_BREAKER_USE = {
    "connections": ("upstream_cx_active", "cx"),
    "requests": ("upstream_rq_active", "rq"),
    "pending": ("upstream_rq_pending_active", "pending"),
}
"""What counts towards a circuit breaker, and the end of its statistic's name."""


def _connections() -> Section:
    connected = Panel("Who is connected?", "Open connections and requests under way. A fact: they follow the traffic.", "none", decimals=0)
    breakers = Panel(
        "How near are the circuit breakers?",
        f"Used share of each; at 100 % Envoy refuses. Red from {slo.BREAKER_SHARE:.0%} on.",
        "percentunit",
        _BREAKER,
    )
    pressure = Panel(
        "Is Envoy itself short of anything?",
        "Used share of what its overload manager guards; at 95 % it accepts no more.",
        "percent",
        _PRESSURE,
    )
    monitors = "envoy_overload_envoy_resource_monitors"
    return Section(
        "Connections and limits",
        8,
        (
            lines(
                connected,
                Query(_value("envoy_http_downstream_cx_active", _CLIENTS), "clients"),
                Query(_value("envoy_cluster_upstream_cx_active"), "to pods"),
                Query(_value("envoy_http_downstream_rq_active", _CLIENTS), "requests"),
                colors={"clients": "blue", "to pods": "purple", "requests": "orange"},
            ),
            lines(
                breakers,
                *[
                    Query(_share(f"envoy_cluster_{active}", f"{_BREAKERS}_remaining_{left}"), name)
                    for name, (active, left) in _BREAKER_USE.items()
                ],
            ),
            lines(
                pressure,
                Query(_value(f"{monitors}_fixed_heap_pressure", 'job="envoy"'), "memory"),
                Query(_value(f"{monitors}_global_downstream_max_connections_pressure", 'job="envoy"'), "clients' connections"),
            ),
        ),
    )


def _order() -> Section:
    files = Panel(
        "Is what people decided in force?",
        "1 for a file that is refused (`convoy reload` says why), and while Envoy does not run what the edge has written. Healthy is 0.",
        "none",
        _EJECTED,
        decimals=0,
    )
    limits = Panel(
        "Who asks too often?",
        "Answers 429 a second by the limit that was reached: of a client, or of an address. `convoy edge` has the classes.",
        "reqps",
        _NEVER,
    )
    limited = "envoy_http_local_rate_limit_rate_limited"
    return Section(
        "Files and limits",
        7,
        (
            lines(
                files,
                Query('convoy_edge_file_refused{job="edge"}', "{{file}}"),
                Query('1 - convoy_edge_agreed{job="edge"}', "Envoy runs something else"),
                colors={"Envoy runs something else": "red"},
            ),
            lines(
                limits,
                *[
                    Query(_rate(limited, f'job="envoy", envoy_local_http_ratelimit_prefix="limit_{who}"'), f"limit of {title}")
                    for who, title in (("client", "a client"), ("address", "an address"))
                ],
            ),
        ),
    )


def _share(active: str, remaining: str) -> str:
    return f"{_value(active)} / clamp_min({_value(active)} + {_value(remaining)}, 1)"


def make() -> Board:
    """The dashboard."""
    return Board("edge", "Convoy · Edge", "What does Envoy do?", (_now(), _clients(), _upstream(), _connections(), _order()))
