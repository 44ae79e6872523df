"""Every span of a pod, declared once: names, attributes, events, and the way out to an OpenTelemetry collector.

A request's spans are made when it is over, from the times that were noted meanwhile, so that tracing costs nothing between two tokens.
Only the server span begins with the request: its ids are needed for log records and headers. Knows neither HTTP servers nor engines.

    server span `chat demo`          parent: the caller's span (Envoy's, one for each attempt)
    ├── queue                        waiting for a slot
    ├── prefill                      in the slot, until the first token
    └── decode                       from the first token to the last

Attributes follow OpenTelemetry's conventions for GenAI and HTTP; only what is Convoy's own begins with `convoy.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode, format_span_id, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.telemetry.exporting import SpanQueue

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from services.telemetry.exporting import OnDrop

PROVIDER = "convoy"
FIRST_TOKEN_EVENT = "gen_ai.first_token"  # noqa: S105 - a name
CANCELLED_EVENT = "convoy.cancelled"
QUEUE_SPAN, PREFILL_SPAN, DECODE_SPAN = "queue", "prefill", "decode"

_PROPAGATOR = TraceContextTextMapPropagator()


class Process(Struct, frozen=True, kw_only=True):
    """Who sends: the pool as `service.name`, the pod as `service.instance.id`."""

    service: str
    instance: str
    version: str


class Generated(Struct, frozen=True, kw_only=True):
    """What a request asked of the model and what came of it. Times in Unix nanoseconds; 0 is not reached."""

    operation: str
    model: str
    parameters: Mapping[str, Any]
    """By the last part of the attribute's name, `gen_ai.request.<name>`."""
    num_prompt_tokens: int
    queued_at: int
    queue_place: int = 0
    started_at: int = 0
    first_token_at: int = 0
    ended_at: int = 0
    num_tokens: int = 0
    finish_reason: str | None = None
    answer_id: str = ""
    input_messages: str = ""
    output_messages: str = ""
    """Both as JSON in the conventions' form, empty unless content may be captured."""


class Answered(Struct, frozen=True, kw_only=True):
    """What is told of a request when it is over. Times in Unix nanoseconds."""

    method: str
    route: str
    status: int
    request_id: str
    pod: str
    began_at: int
    ended_at: int
    is_cancelled: bool = False
    error_code: str = ""
    error_message: str = ""
    generated: Generated | None = None


class Tracing:
    """The tracer of one process. Without an endpoint nothing is recorded, but each request still has its trace id."""

    def __init__(self, process: Process, endpoint: str, sample_percent: float, on_drop: OnDrop) -> None:
        """`endpoint`: base address of an OTLP/HTTP receiver, or empty; `sample_percent`: of requests whose caller has not decided.

        `on_drop` is told of spans that could not be sent (see `SpanQueue`).
        """
        resource = Resource.create(
            {"service.name": process.service, "service.instance.id": process.instance, "service.version": process.version}
        )
        sampler = ParentBased(TraceIdRatioBased(sample_percent / 100)) if endpoint else ALWAYS_OFF
        self._provider = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
        self._queue = SpanQueue(endpoint, on_drop) if endpoint else None
        if self._queue is not None:
            self._provider.add_span_processor(self._queue.processor)
        self._tracer = self._provider.get_tracer("convoy", process.version)

    def begin(self, headers: Mapping[str, str], began_at: int) -> Span:
        """The server span of a request that came at `began_at` (Unix nanoseconds), below the caller's span if `headers` name one."""
        parent: Context = _PROPAGATOR.extract(headers)
        return self._tracer.start_span("request", parent, SpanKind.SERVER, start_time=began_at)

    def end(self, span: Span, answered: Answered) -> None:
        """Ends a request's span with all that is known, and records the spans below it."""
        if not span.is_recording():
            return
        generated = answered.generated
        span.update_name(f"{generated.operation} {generated.model}" if generated else f"{answered.method} {answered.route}")
        span.set_attributes(_request_attributes(answered))
        if generated is not None:
            span.set_attributes(_generation_attributes(answered, generated))
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


def trace_id_of(span: Span) -> str:
    """32 hexadecimal digits."""
    return format_trace_id(span.get_span_context().trace_id)


def response_context_of(span: Span) -> str:
    """The value of the header `traceresponse` (W3C Trace Context, level 2): the span that answered."""
    context = span.get_span_context()
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"


def _request_attributes(answered: Answered) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "http.request.method": answered.method,
        "http.route": answered.route,
        "http.response.status_code": answered.status,
        "convoy.request_id": answered.request_id,
        "convoy.pod": answered.pod,
    }
    if answered.error_code:
        attributes["error.type"] = answered.error_code
    return attributes


def _generation_attributes(answered: Answered, generated: Generated) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": generated.operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": generated.model,
        "gen_ai.response.model": generated.model,
        "gen_ai.usage.input_tokens": generated.num_prompt_tokens,
        "gen_ai.usage.output_tokens": generated.num_tokens,
    }
    attributes |= {f"gen_ai.request.{name}": value for name, value in generated.parameters.items()}
    if generated.finish_reason:
        attributes["gen_ai.response.finish_reasons"] = [generated.finish_reason]
    if generated.first_token_at:
        attributes["gen_ai.response.time_to_first_chunk"] = (generated.first_token_at - answered.began_at) / 1e9
    texts = {
        "gen_ai.response.id": generated.answer_id,
        "gen_ai.input.messages": generated.input_messages,
        "gen_ai.output.messages": generated.output_messages,
    }
    return attributes | {name: text for name, text in texts.items() if text}
