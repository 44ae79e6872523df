"""Every metric of a pod, declared once: name, help, labels, buckets. `docs/metrics.md` is made from here.

Labels are bounded by construction: `model` is the served one, `endpoint` one of the routes, `status` a class such as `2xx`, `reason` one of
a few words; never a user's text or an id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nothing reads

# Generation spans five orders of magnitude: a cached refusal takes a millisecond, a long answer on a processor two minutes. About three
# bounds a decade put a quantile within a factor of 2.5 of the truth, at 17 series a histogram. 2 s is what first tokens are promised in.
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120)
# Prompts and answers double from a word to the largest contexts in use.
TOKENS_BUCKETS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
REFUSALS = ("queue_full", "queue_timeout", "deadline_unreachable", "client_concurrency", "draining")
POD_STATES = ("loading", "warming", "ready", "stalled", "draining", "stopped")
"""One of them is 1; what follows what says `services/engine/health.py`."""
SPAN_LOSSES = ("queue_full", "not_taken")
# A loop that lags 10 ms (our limit) delays every token by as much.
# Predicted too short (below 0) or too long.
_ERROR_BUCKETS = (-30, -10, -5, -2, -1, -0.5, -0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1)


class Metrics:
    """The metrics of one pod, on a registry of their own so that a process (or a test) can hold several pods.

    Those whose only label is the model are held with that label already set: looking a label up costs as much as counting.
    """

    def __init__(self, model: str, registry: CollectorRegistry | None = None) -> None:
        """`model` is the served model's id, the only value of that label."""
        self.registry = registry or CollectorRegistry()
        self.model = model
        self._declare_requests()
        self._declare_tokens()
        self._declare_queue()
        self._declare_engine()
        ProcessCollector(registry=self.registry)

    def _declare_requests(self) -> None:
        by = ["model", "endpoint"]
        self.requests = Counter("llm_requests", "Requests answered.", [*by, "status"], registry=self.registry)
        self.duration = Histogram(
            "llm_request_duration_seconds",
            "Whole request, from its arrival at the pod to the last byte.",
            by,
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.in_progress = self._gauge("llm_requests_in_progress", "Requests being answered, waiting ones included.")
        self.ready = self._gauge("llm_pod_ready", "1 when the pod takes requests.")
        self._state = Gauge("llm_pod_state", "1 for the state that the pod is in.", ["model", "state"], registry=self.registry)
        self.slow_clients = self._counter("llm_slow_clients", "Connections ended because their client read nothing for too long.")
        self.spans_dropped = self._by_reason("llm_spans_dropped", "Trace spans that no collector got.", SPAN_LOSSES)

    def _declare_tokens(self) -> None:
        self.prompt_tokens = self._counter("llm_prompt_tokens", "Tokens of admitted prompts.")
        self.cached_prompt_tokens = self._counter("llm_cached_prompt_tokens", "Tokens of prompts that needed no prefill.")
        self.generation_tokens = self._counter("llm_generation_tokens", "Tokens generated.")
        self.prompt_size = self._tokens("llm_request_prompt_tokens", "Tokens of one admitted prompt.")
        self.answer_size = self._tokens("llm_request_generation_tokens", "Tokens of one answer.")
        self.generation_latency = self._seconds("llm_generation_latency_seconds", "One generation in its slot, first step to last token.")
        self.first_token = self._seconds("llm_time_to_first_token_seconds", "From a request's arrival to its first token, queue included.")
        self.inter_token = self._seconds("llm_inter_token_latency_seconds", "Mean time between tokens of one answer.")

    def _declare_queue(self) -> None:
        self.queue_depth = self._gauge("llm_queue_depth", "Requests waiting for a slot.")
        self.queue_capacity = self._gauge("llm_queue_capacity", "Requests that may wait (QUEUE_CAPACITY); +Inf without backpressure.")
        self.slots_in_use = self._gauge("llm_slots_in_use", "Slots that generate.")
        self.slots = self._gauge("llm_slots", "Slots there are (MAX_CONCURRENT_REQUESTS).")
        self.queue_wait = self._seconds("llm_queue_wait_seconds", "Wait for a slot of admitted requests.")
        self.wait_error = self._error("llm_queue_wait_prediction_error_seconds", "Predicted minus real wait of requests that waited.")
        self.duration_error = self._error(
            "llm_generation_prediction_error_seconds", "Predicted minus real time in its slot, of requests that ran to their end."
        )
        self.promised = self._gauge("llm_queue_promised", "Refused requests of all pods that were told to return and are not back yet.")
        self.queue_bytes = self._gauge("llm_queue_bytes", "Memory of requests waiting for a slot.")
        self.store_errors = self._counter(
            "llm_store_errors", "Looks at what pods share that failed; the request went on without: its client's limit, or its promise."
        )
        self.rejected = self._by_reason("llm_admission_rejected", "Requests refused a slot.", REFUSALS)

    def _declare_engine(self) -> None:
        self.engine_errors = self._counter("llm_engine_errors", "Generations that the engine broke.")
        self.stalls = self._counter("llm_stalls", "Generations ended because the engine brought no token for too long.")
        self.batch_size = self._gauge("llm_batch_size", "Requests in the engine's last step.")
        self.engine_waiting = self._gauge("llm_engine_waiting", "Requests that have a slot, and for which the engine has no room yet.")
        self.tokens_per_second = self._gauge("llm_tokens_per_second", "Tokens generated a second over the last steps, all requests.")
        self.cache_usage = self._gauge("llm_kv_cache_usage_ratio", "Used share of the KV cache.")
        self.gpu_memory = self._gauge(
            "llm_gpu_memory_used_bytes", "Memory that the engine holds on its GPU; 0 without one, and with ENGINE=vllm."
        )
        self.cost_per_hour = self._gauge("llm_pod_cost_per_hour", "What an hour of this pod costs (POD_COST_PER_HOUR).")
        self.tasks = self._gauge("llm_event_loop_tasks", "Tasks of the pod's event loop; idle it has a few, and as many after every load.")
        self.loop_lag = Histogram(
            "llm_event_loop_lag_seconds",
            "How late the pod's event loop wakes.",
            ["model"],
            buckets=_LAG_BUCKETS,
            registry=self.registry,
        ).labels(self.model)

    def set_state(self, state: str) -> None:
        """Which of POD_STATES the pod is in now."""
        for name in POD_STATES:
            self._state.labels(self.model, name).set(name == state)

    def _counter(self, name: str, help_: str) -> Counter:
        return Counter(name, help_, ["model"], registry=self.registry).labels(self.model)

    def _by_reason(self, name: str, help_: str, reasons: Sequence[str]) -> Counter:
        """Each reason is there from the start, with zero: a series that begins with its first event has no rate for it."""
        counter = Counter(name, help_, ["model", "reason"], registry=self.registry)
        for reason in reasons:
            counter.labels(self.model, reason)
        return counter

    def _gauge(self, name: str, help_: str) -> Gauge:
        return Gauge(name, help_, ["model"], registry=self.registry).labels(self.model)

    def _seconds(self, name: str, help_: str) -> Histogram:
        return Histogram(name, help_, ["model"], buckets=SECONDS_BUCKETS, registry=self.registry).labels(self.model)

    def _error(self, name: str, help_: str) -> Histogram:
        return Histogram(name, help_, ["model"], buckets=_ERROR_BUCKETS, registry=self.registry).labels(self.model)

    def _tokens(self, name: str, help_: str) -> Histogram:
        return Histogram(name, help_, ["model"], buckets=TOKENS_BUCKETS, registry=self.registry).labels(self.model)
