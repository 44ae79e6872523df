"""Which pod hurts? The same figures side by side, one colour a pod."""

from __future__ import annotations

from grafana import slo
from grafana.boards import Board, Section, variable
from grafana.panels import Limits, Panel, Query, at_least, at_most, lines, number
from grafana.tables import Column, rows

_ON = 'job="engine", instance=~"$pod"'
_RULE = 'instance=~"$pod"'
_POD = "{{instance}}"
_READY = at_least(1, 1)
_QUEUE = at_most(slo.QUEUE_SHARE, slo.QUEUE_SHARE / 2)
_SLOTS = at_most(1, slo.SLOTS_WARN)
_CACHE = at_most(slo.CACHE_FULL)
_LAG = at_most(slo.EVENT_LOOP_LAG_SECONDS, slo.EVENT_LOOP_LAG_SECONDS / 2)
_FIRST_TOKEN = at_most(slo.FIRST_TOKEN_SECONDS)
_MEMORY = at_most(slo.MEMORY_BYTES, line=False)
_RESTARTS = Limits(((None, "green"), (slo.RESTARTS_PER_HOUR, "yellow"), (slo.RESTARTS_PER_HOUR + 1, "red")), line=False)

_ready = f"llm_pod_ready{{{_ON}}}"
_queue_share = f"llm_queue_depth{{{_ON}}} / clamp_min(llm_queue_capacity{{{_ON}}}, 1)"
_slots_share = f"llm_slots_in_use{{{_ON}}} / llm_slots{{{_ON}}}"
_cache = f"llm_kv_cache_usage_ratio{{{_ON}}}"
_memory = f"process_resident_memory_bytes{{{_ON}}}"
_lag = f"pod:llm_event_loop_lag_seconds:p99_5m{{{_RULE}}}"
_first = f"pod:llm_time_to_first_token_seconds:p95_5m{{{_RULE}}}"
_restarts = f"changes(process_start_time_seconds{{{_ON}}}[1h])"
_cores = f"pod:process_cpu_seconds:rate1m{{{_RULE}}}"
_tokens = f"pod:llm_generation_tokens:rate1m{{{_RULE}}}"
_requests = f"max by (instance) (pod:llm_requests:rate1m{{{_RULE}}}) or on (instance) max by (instance) ({_ready} * 0)"
"""The counter appears with a pod's first request; a pod that had none had 0 a second."""


def _now() -> Section:
    ready = Panel("Are all pods ready?", "Share of the chosen pods that take requests.", "percentunit", _READY, decimals=0)
    queue = Panel(
        "Is a queue full?", f"The fullest one; full means 429. Red from {slo.QUEUE_SHARE:.0%} on.", "percentunit", _QUEUE, decimals=0
    )
    first = Panel(
        "How slow is the slowest pod?", f"Its p95 to the first token. Promised: {slo.FIRST_TOKEN_SECONDS:g} s.", "s", _FIRST_TOKEN
    )
    cache = Panel(
        "Is a KV cache full?", "The fullest one; when full, requests wait though slots are free.", "percentunit", _CACHE, decimals=0
    )
    lag = Panel(
        "Are event loops late?",
        f"p99 of the latest one. It delays every token; red from {slo.EVENT_LOOP_LAG_SECONDS * 1000:g} ms on.",
        "s",
        _LAG,
    )
    restarts = Panel(
        "Restarts in the last hour", "Of all chosen pods; each cost what the pod had in flight.", "none", _RESTARTS, decimals=0
    )
    return Section(
        "",
        5,
        (
            number(ready, f"avg({_ready})"),
            number(queue, f"max({_queue_share})"),
            number(first, f"max({_first})"),
            number(cache, f"max({_cache})"),
            number(lag, f"max({_lag})"),
            number(restarts, f"sum({_restarts})", instant=True),
        ),
    )


def _table() -> Section:
    """One row a pod, worst cells in red."""
    what = Panel(
        "Which pod stands out?",
        f"Now, one row a pod; colours as in the graphs below, first token against {slo.FIRST_TOKEN_SECONDS:g} s.",
        "none",
    )
    columns = (
        Column("State", _by_pod(_ready), "none", _READY, words=((0, "not ready"), (1, "ready"))),
        Column("Restarts, 1 h", _by_pod(_restarts), "none", _RESTARTS, decimals=0),
        Column("Requests/s", _requests, "none", decimals=1),
        Column("Tokens/s", _tokens, "none", decimals=0),
        Column("First token p95", _first, "s", _FIRST_TOKEN),
        Column("Slots", _by_pod(_slots_share), "percentunit", _SLOTS, decimals=0),
        Column("Queue", _by_pod(_queue_share), "percentunit", _QUEUE, decimals=0),
        Column("KV cache", _by_pod(_cache), "percentunit", _CACHE, decimals=0),
        Column("Loop lag p99", _lag, "s", _LAG),
        Column("CPU cores", _cores, "none", decimals=2),
        Column("Memory", _by_pod(_memory), "bytes", _MEMORY),
    )
    return Section("", 6, (rows(what, "instance", "Pod", columns),))


def _by_pod(expr: str) -> str:
    """Without the labels that would make further columns."""
    return f"max by (instance) ({expr})"


def _load() -> Section:
    queue = Panel(
        "Where do requests wait?",
        f"Used share of each queue; a full one refuses. Red from {slo.QUEUE_SHARE:.0%} on.",
        "percentunit",
        _QUEUE,
    )
    slots = Panel("Which pod has no slot left?", "Used share of the slots; at 100 % the next request waits.", "percentunit", _SLOTS)
    batch = Panel("How large are the batches?", "Requests in the engine's last step. A fact: large ones use the processor well.", "none")
    rate = Panel("Who gets the requests?", "Requests a second. A fact: even lines mean that Envoy shares well.", "reqps")
    return Section(
        "Load",
        8,
        (
            lines(queue, Query(_queue_share, _POD)),
            lines(slots, Query(_slots_share, _POD)),
            lines(batch, Query(f"llm_batch_size{{{_ON}}}", _POD)),
            lines(rate, Query(_requests, _POD)),
        ),
    )


def _speed() -> Section:
    first = Panel(
        "Which pod is slow to begin?",
        f"p95 to the first token. Promised: {slo.FIRST_TOKEN_SECONDS:g} s for all pods together.",
        "s",
        _FIRST_TOKEN,
    )
    tokens = Panel("Which pod generates?", "Tokens a second over the engine's last steps.", "none")
    lag = Panel(
        "Which event loop is late?",
        f"p99 of how late it wakes; every token waits as long. Limit {slo.EVENT_LOOP_LAG_SECONDS * 1000:g} ms.",
        "s",
        _LAG,
    )
    broken = Panel(
        "Which engine breaks?", "Generations that the engine broke, a second. Healthy is 0.", "none", at_most(slo.ENGINE_ERRORS, 1e-9)
    )
    return Section(
        "Speed",
        8,
        (
            lines(first, Query(_first, _POD)),
            lines(tokens, Query(f"llm_tokens_per_second{{{_ON}}}", _POD)),
            lines(lag, Query(_lag, _POD)),
            lines(broken, Query(f"rate(llm_engine_errors_total{{{_ON}}}[$__rate_interval])", _POD)),
        ),
    )


def _machine() -> Section:
    cores = Panel("Who uses the processor?", "Cores in use. A fact: a busy engine takes what NUM_THREADS allows.", "none")
    memory = Panel("Does memory grow?", "Resident memory. A line that only climbs is a leak.", "bytes", _MEMORY)
    cache = Panel("Is the KV cache full?", "Used share; a full cache holds requests back though slots are free.", "percentunit", _CACHE)
    restarts = Panel("Who was started again?", "Starts in the hour before. Healthy is 0.", "none", _RESTARTS, decimals=0)
    return Section(
        "Machine",
        8,
        (
            lines(cores, Query(_cores, _POD)),
            lines(memory, Query(_memory, _POD)),
            lines(cache, Query(_cache, _POD)),
            lines(restarts, Query(_restarts, _POD)),
        ),
    )


def make() -> Board:
    """The dashboard."""
    model = variable("model", "Model", "Pods that serve this model.", "label_values(llm_pod_ready, model)")
    pod = variable("pod", "Pod", "Pods to compare.", 'label_values(llm_pod_ready{model=~"$model"}, instance)')
    return Board("pods", "Convoy · Pods", "Which pod hurts?", (_now(), _table(), _load(), _speed(), _machine()), (model, pod))
