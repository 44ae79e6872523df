"""OpenTelemetry's GenAI server metrics: pushed to the collector, each bucket with a trace of a request that fell into it (exemplars).

Rates and quantiles are better taken from the scraped `llm_*`; these are for who speaks the conventions, and lead from a graph to a trace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

from services.telemetry.metrics import SECONDS_BUCKETS

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.resources import Resource

    from services.telemetry.spans import Answered, Generated

_SEND_EVERY_MILLISECONDS = 5000
_SEND_TIMEOUT_SECONDS = 4.0
_STOP_MILLISECONDS = 2000.0

HISTOGRAMS = {
    "gen_ai.server.request.duration": "Whole request, from its arrival at the pod to the last byte.",
    "gen_ai.server.time_to_first_token": "From a request's arrival to its first token, queue included.",
    "gen_ai.server.time_per_output_token": "Mean time between tokens of one answer.",
}
"""By the conventions' names, in seconds; Prometheus writes `_` for `.` and adds `_seconds`."""


class GenAiMetrics:
    """The three histograms of one pod."""

    def __init__(self, resource: Resource, endpoint: str) -> None:
        """Starts the thread that sends to the OTLP/HTTP receiver at `endpoint`."""
        exporter = OTLPMetricExporter(f"{endpoint.rstrip('/')}/v1/metrics", timeout=_SEND_TIMEOUT_SECONDS)
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=_SEND_EVERY_MILLISECONDS)
        self._provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        meter = self._provider.get_meter("convoy")
        self._duration, self._first_token, self._per_token = (
            meter.create_histogram(name, unit="s", description=text, explicit_bucket_boundaries_advisory=SECONDS_BUCKETS)
            for name, text in HISTOGRAMS.items()
        )

    def record(self, context: Context, answered: Answered, generated: Generated) -> None:
        """Counts a request; `context` holds its span, whose ids become the exemplar."""
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": generated.operation,
            "gen_ai.provider.name": "convoy",
            "gen_ai.request.model": generated.model,
            "gen_ai.response.model": generated.model,
        }
        if answered.error_code:
            attributes["error.type"] = answered.error_code
        self._duration.record((answered.ended_at - answered.began_at) / 1e9, attributes, context)
        if generated.first_token_at:
            self._first_token.record((generated.first_token_at - answered.began_at) / 1e9, attributes, context)
        if generated.num_tokens > 1:
            seconds = (generated.ended_at - generated.first_token_at) / 1e9
            self._per_token.record(seconds / (generated.num_tokens - 1), attributes, context)

    def stop(self) -> None:
        """Sends the last figures."""
        self._provider.shutdown(_STOP_MILLISECONDS)
