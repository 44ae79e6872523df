"""Every span of a pod, declared once: names, attributes, events, and the way out to an OpenTelemetry collector.

A request's spans are made when it is over, from the times that were noted meanwhile, so that tracing costs nothing between two tokens.
Only the server span begins with the request: its ids are needed for log records and headers. Knows neither HTTP servers nor engines.

    server span `chat demo`          parent: the caller's span (Envoy's, one for each attempt)
    ├── queue                        waiting for a slot
    ├── prefill                      in the slot, until the first token
    └── decode                       from the first token to the last

What their attributes are: `spans.py`.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.telemetry.exporting import SpanQueue
from services.telemetry.genai import GenAiMetrics
from services.telemetry.spans import generation_attributes, request_attributes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from services.telemetry.exporting import OnDrop
    from services.telemetry.spans import Answered, Generated, Process

FIRST_TOKEN_EVENT = "gen_ai.first_token"  # noqa: S105 - a name
CANCELLED_EVENT = "convoy.cancelled"
QUEUE_SPAN, PREFILL_SPAN, DECODE_SPAN = "queue", "prefill", "decode"

_PROPAGATOR = TraceContextTextMapPropagator()
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class Tracing:
    """The tracer of one process. Without an endpoint nothing is recorded, but each request still has its trace id."""

    def __init__(self, process: Process, endpoint: str, sample_percent: float, on_drop: OnDrop) -> None:
        """`endpoint`: base address of an OTLP/HTTP receiver, or empty; `sample_percent`: of requests whose caller has not decided.

        `on_drop` is told of spans that could not be sent (see `SpanQueue`).
        """
        resource = Resource.create(
            {"service.name": process.service, "service.instance.id": process.instance, "service.version": process.version}
        )
        sampler = ParentBased(TraceIdRatioBased(sample_percent / 100))
        self._provider = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
        self._queue = SpanQueue(endpoint, on_drop) if endpoint else None
        self._metrics = GenAiMetrics(resource, endpoint) if endpoint else None
        if self._queue is not None:
            self._provider.add_span_processor(self._queue.processor)
        self._tracer = self._provider.get_tracer("convoy", process.version)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody is told of requests: metrics count those, too, that are not traced."""
        return self._queue is not None

    def begin(self, headers: Mapping[str, str], began_at: int) -> Span:
        """The server span of a request that came at `began_at` (Unix nanoseconds), below the caller's span if `headers` name one."""
        if not self.is_wanted:
            return _unrecorded(headers)
        parent: Context = _PROPAGATOR.extract(headers)
        return self._tracer.start_span("request", parent, SpanKind.SERVER, start_time=began_at)

    def end(self, span: Span, answered: Answered) -> None:
        """Counts a request, ends its span with all that is known, and records the spans below it."""
        generated = answered.generated
        if self._metrics is not None and generated is not None:
            self._metrics.record(set_span_in_context(span), answered, generated)
        if not span.is_recording():
            return
        span.update_name(f"{generated.operation} {generated.model}" if generated else f"{answered.method} {answered.route}")
        span.set_attributes(request_attributes(answered))
        if generated is not None:
            span.set_attributes(generation_attributes(answered, generated))
            self._record_phases(span, answered, generated)
        if answered.is_cancelled:
            span.add_event(CANCELLED_EVENT, timestamp=answered.ended_at)
        if answered.error_code:
            span.set_status(Status(StatusCode.ERROR, answered.error_message))
        span.end(answered.ended_at)

    def stop(self) -> None:
        """Sends what waits, within a few seconds."""
        if self._queue is not None:
            self._queue.stop()
        if self._metrics is not None:
            self._metrics.stop()

    def _record_phases(self, span: Span, answered: Answered, generated: Generated) -> None:
        """The spans below the server span; one that was cut short ends with the request, one that was not reached is not there."""
        context = set_span_in_context(span)
        started, first, end = generated.started_at, generated.first_token_at, generated.ended_at or answered.ended_at
        self._record(QUEUE_SPAN, context, generated.queued_at, started or end, {"convoy.queue.place": generated.queue_place})
        if started:
            self._record(PREFILL_SPAN, context, started, first or end, {"gen_ai.usage.input_tokens": generated.num_prompt_tokens})
        if first:
            span.add_event(FIRST_TOKEN_EVENT, timestamp=first)
            self._record(DECODE_SPAN, context, first, end, {"gen_ai.usage.output_tokens": generated.num_tokens})

    def _record(self, name: str, context: Context, began_at: int, ended_at: int, attributes: Mapping[str, Any]) -> None:
        self._tracer.start_span(name, context, start_time=began_at, attributes=attributes).end(ended_at)


def _unrecorded(headers: Mapping[str, str]) -> Span:
    """A span that nobody is told of: ids alone, at a fifth of what the SDK takes for that."""
    caller = _TRACEPARENT.match(headers.get("traceparent", ""))
    trace_id = int(caller[1], 16) if caller else 0
    return NonRecordingSpan(SpanContext(trace_id or random.getrandbits(128), random.getrandbits(64), is_remote=False))


def trace_id_of(span: Span) -> str:
    """32 hexadecimal digits."""
    return format_trace_id(span.get_span_context().trace_id)


def response_context_of(span: Span) -> str:
    """The value of the header `traceresponse` (W3C Trace Context, level 2): the span that answered."""
    context = span.get_span_context()
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"
