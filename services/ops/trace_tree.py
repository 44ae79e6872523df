"""Jaeger's JSON as trees of spans, and which of them is a request. Pure: asks nobody, prints nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, field

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST_ID = "convoy.request_id"


class Event(Struct, frozen=True):
    """Something that happened in a span, at a time in Unix microseconds."""

    name: str
    at_us: int


class Span(Struct):
    """One span; times in Unix microseconds. `instance` is the pod that sent it, empty for Envoy; `parent_id` is empty at the top."""

    id: str
    parent_id: str
    name: str
    service: str
    instance: str
    start_us: int
    duration_us: int
    tags: dict[str, Any]
    events: list[Event]
    children: list[Span] = []

    @property
    def end_us(self) -> int:
        """When it was over."""
        return self.start_us + self.duration_us

    @property
    def kind(self) -> str:
        """`server`, `client` or `internal`."""
        return str(self.tags.get("span.kind", ""))

    def text(self, tag: str) -> str:
        """A tag's value; empty if it is missing or is what Envoy writes for nothing."""
        value = str(self.tags.get(tag, ""))
        return "" if value == "-" else value

    def number(self, tag: str) -> int:
        """A tag's value, which Envoy writes as text; 0 if it is missing."""
        text = self.text(tag)
        return int(text) if text.isdigit() else 0

    def walk(self) -> Iterator[Span]:
        """This span and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


class _Pair(Struct):
    key: str
    value: Any


class _Log(Struct):
    timestamp: int
    fields: list[_Pair]


class _Reference(Struct):
    span_id: str = field(name="spanID")


class _Span(Struct):
    span_id: str = field(name="spanID")
    name: str = field(name="operationName")
    start_us: int = field(name="startTime")
    duration_us: int = field(name="duration")
    process_id: str = field(name="processID")
    references: list[_Reference] = []
    tags: list[_Pair] = []
    logs: list[_Log] = []


class _Process(Struct):
    service: str = field(name="serviceName")
    tags: list[_Pair] = []


class _Trace(Struct):
    trace_id: str = field(name="traceID")
    spans: list[_Span] = []
    processes: dict[str, _Process] = {}


class _Answer(Struct):
    data: list[_Trace] | None = None


def decode(body: bytes) -> dict[str, list[Span]]:
    """The traces in an answer of Jaeger's API, each by its id as its topmost spans; raises `msgspec.DecodeError`."""
    return {trace.trace_id: _trees(trace) for trace in msgspec.json.decode(body, type=_Answer).data or []}


def requests(roots: list[Span]) -> list[Span]:
    """The topmost span of each request, by time: what lies above it is the caller's own, and is not ours to tell."""
    found: list[Span] = []
    for root in roots:
        _collect(root, found)
    return sorted(found, key=lambda span: span.start_us)


def _collect(span: Span, found: list[Span]) -> None:
    if REQUEST_ID in span.tags:
        found.append(span)
        return
    for child in span.children:
        _collect(child, found)


def _trees(trace: _Trace) -> list[Span]:
    # By id: a sender that got no answer sends again, and Jaeger keeps both.
    spans = {raw.span_id: _span(raw, trace.processes[raw.process_id]) for raw in trace.spans}
    roots: list[Span] = []
    for span in sorted(spans.values(), key=lambda span: span.start_us):
        parent = spans.get(span.parent_id)
        (parent.children if parent else roots).append(span)
    return roots


def _span(raw: _Span, process: _Process) -> Span:
    events = [Event(str(pair.value), log.timestamp) for log in raw.logs for pair in log.fields if pair.key == "event"]
    return Span(
        id=raw.span_id,
        parent_id=raw.references[0].span_id if raw.references else "",
        name=raw.name,
        service=process.service,
        instance=next((str(pair.value) for pair in process.tags if pair.key == "service.instance.id"), ""),
        start_us=raw.start_us,
        duration_us=raw.duration_us,
        tags={pair.key: pair.value for pair in raw.tags},
        events=events,
    )
