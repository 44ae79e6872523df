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
    """The metrics of one pod, on a registry of their own so that a process (or a test) can hold several pods."""

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
        self.in_progress = Gauge(
            "llm_requests_in_progress", "Requests being answered, waiting ones included.", ["model"], registry=self.registry
        )
        self.duration = Histogram(
            "llm_request_duration_seconds",
            "Whole request, from its arrival at the pod to the last byte.",
            by,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.engine_errors = Counter("llm_engine_errors", "Generations that the engine broke.", ["model"], registry=self.registry)
        self.ready = Gauge("llm_pod_ready", "1 when the pod takes requests.", ["model"], registry=self.registry)

    def _declare_tokens(self) -> None:
        model = ["model"]
        self.prompt_tokens = Counter("llm_prompt_tokens", "Tokens of admitted prompts.", model, registry=self.registry)
        self.generation_tokens = Counter("llm_generation_tokens", "Tokens generated.", model, registry=self.registry)
        self.generation_latency = Histogram(
            "llm_generation_latency_seconds",
            "One generation in its slot, first step to last token.",
            model,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "llm_time_to_first_token_seconds",
            "From a request's arrival to its first token, the queue included.",
            model,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.inter_token = Histogram(
            "llm_inter_token_latency_seconds", "Mean time between tokens of one answer.", model, buckets=_SECONDS, registry=self.registry
        )

    def _declare_queue(self) -> None:
        model = ["model"]
        self.queue_depth = Gauge("llm_queue_depth", "Requests waiting for a slot.", model, registry=self.registry)
        self.slots_in_use = Gauge("llm_slots_in_use", "Slots that generate.", model, registry=self.registry)
        self.queue_wait = Histogram(
            "llm_queue_wait_seconds", "Wait for a slot of admitted requests.", model, buckets=_SECONDS, registry=self.registry
        )
        self.rejected = Counter("llm_admission_rejected", "Requests refused a slot.", ["model", "reason"], registry=self.registry)
        self.cache_usage = Gauge("llm_kv_cache_usage_ratio", "Used share of the KV cache.", model, registry=self.registry)
