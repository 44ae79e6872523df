"""Every metric of a pod, declared once: name, help, labels, buckets.

Labels are bounded by construction: `model` is the served one, `endpoint` one of the routes, `status` a class such as `2xx`, `reason` one of
a few words; never a user's text or an id.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nothing reads

# Generation spans five orders of magnitude: a cached refusal takes a millisecond, a long answer on a processor two minutes.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


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

    def _declare_requests(self) -> None:
        by = ["model", "endpoint"]
        self.requests = Counter("llm_requests", "Requests answered.", [*by, "status"], registry=self.registry)
        self.duration = Histogram(
            "llm_request_duration_seconds",
            "Whole request, from its arrival at the pod to the last byte.",
            by,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_progress = self._gauge("llm_requests_in_progress", "Requests being answered, waiting ones included.")
        self.engine_errors = self._counter("llm_engine_errors", "Generations that the engine broke.")
        self.ready = self._gauge("llm_pod_ready", "1 when the pod takes requests.")

    def _declare_tokens(self) -> None:
        self.prompt_tokens = self._counter("llm_prompt_tokens", "Tokens of admitted prompts.")
        self.generation_tokens = self._counter("llm_generation_tokens", "Tokens generated.")
        self.generation_latency = self._seconds("llm_generation_latency_seconds", "One generation in its slot, first step to last token.")
        self.first_token = self._seconds("llm_time_to_first_token_seconds", "From a request's arrival to its first token, queue included.")
        self.inter_token = self._seconds("llm_inter_token_latency_seconds", "Mean time between tokens of one answer.")

    def _declare_queue(self) -> None:
        self.queue_depth = self._gauge("llm_queue_depth", "Requests waiting for a slot.")
        self.slots_in_use = self._gauge("llm_slots_in_use", "Slots that generate.")
        self.queue_wait = self._seconds("llm_queue_wait_seconds", "Wait for a slot of admitted requests.")
        self.cache_usage = self._gauge("llm_kv_cache_usage_ratio", "Used share of the KV cache.")
        self.spans_dropped = Counter("llm_spans_dropped", "Trace spans that no collector got.", ["model", "reason"], registry=self.registry)
        self.rejected = Counter("llm_admission_rejected", "Requests refused a slot.", ["model", "reason"], registry=self.registry)

    def _counter(self, name: str, help_: str) -> Counter:
        return Counter(name, help_, ["model"], registry=self.registry).labels(self.model)

    def _gauge(self, name: str, help_: str) -> Gauge:
        return Gauge(name, help_, ["model"], registry=self.registry).labels(self.model)

    def _seconds(self, name: str, help_: str) -> Histogram:
        return Histogram(name, help_, ["model"], buckets=_SECONDS, registry=self.registry).labels(self.model)
