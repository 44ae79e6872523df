"""What the spans of one request say of it: outcome, attempts, phases, and the tree that is shown. Pure.

Milliseconds count from the request's beginning, or are durations.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from msgspec import Struct

from services.ops.trace_tree import REQUEST_ID
from services.telemetry.tracing import CANCELLED_EVENT, DECODE_SPAN, FIRST_TOKEN_EVENT, PREFILL_SPAN, QUEUE_SPAN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.ops.trace_tree import Span

_ENVOY = "envoy"
_CLIENT_LEFT = {"DC", "DR"}
_EVENTS = {FIRST_TOKEN_EVENT: "first token", CANCELLED_EVENT: "cancelled"}

# What Envoy's response flags say of a pod (%RESPONSEFLAGS% in Envoy's manual); those of a refused connection also leave no pod's span.
_NO_CONNECTION = "UF"
FLAGS = {
    _NO_CONNECTION: "no connection to {pod}",
    "UC": "{pod} closed the connection",
    "UPE": "{pod} broke off its answer",
    "UR": "{pod} reset the request",
    "UT": "{pod} gave no answer in time",
    "SI": "{pod} was silent for too long",
    "UH": "no healthy pod",
    "UO": "the edge holds as many requests as it may",
    "OM": "the edge is out of memory",
}


class Attempt(Struct, frozen=True, kw_only=True):
    """One try on one pod. `pod` is its address where its name is not known; `error` is empty for the try that was answered well."""

    number: int
    start_ms: float
    ms: float
    address: str
    pod: str
    status: int
    flags: str
    error: str
    has_pod_span: bool


class Node(Struct, frozen=True, kw_only=True):
    """A line of the tree: a span, or an event (no duration)."""

    name: str
    place: str
    start_ms: float
    ms: float | None = None
    note: str = ""
    error: str = ""
    children: list[Node] = []


class Request(Struct, frozen=True, kw_only=True):
    """One request. `status` 0: no answer began; a phase that was not reached, or of which no span came, is None."""

    request_id: str
    at: float
    total_ms: float
    method: str
    path: str
    status: int
    flags: str
    pod: str
    attempts: list[Attempt]
    is_cancelled: bool
    input_tokens: int
    output_tokens: int
    finish_reason: str
    error_type: str
    error_message: str
    queue_place: int
    queue_ms: float | None
    prefill_ms: float | None
    decode_ms: float | None
    pod_ms: float | None
    tree: Node

    @property
    def ms_per_token(self) -> float | None:
        """Between two tokens of the answer."""
        return self.decode_ms / (self.output_tokens - 1) if self.decode_ms is not None and self.output_tokens > 1 else None


def describe(top: Span, pods: Mapping[str, str]) -> Request:
    """The facts of the request whose topmost span is `top`; `pods` names the pods of addresses that no span names."""
    tries = [_attempt(top, number, span, pods) for number, span in enumerate(_tries(top), 1)]
    served = _pod_span(_tries(top)[-1] if tries else top)
    tags = served.tags if served else {}
    phases = {span.name: span for span in (served.children if served else [])}
    flags = top.text("response_flags")
    return Request(
        request_id=top.text(REQUEST_ID),
        at=top.start_us / 1e6,
        total_ms=_ms(max(span.end_us for span in top.walk()) - top.start_us) if top.service != _ENVOY else _ms(top.duration_us),
        method=top.text("http.method") or top.text("http.request.method"),
        path=_path(top.text("http.url")) or top.text("http.route"),
        status=_status(top),
        flags=flags,
        pod=top.text("convoy.pod"),
        attempts=tries,
        is_cancelled=flags in _CLIENT_LEFT if top.service == _ENVOY else _is_left(top),
        input_tokens=served.number("gen_ai.usage.input_tokens") if served else 0,
        output_tokens=served.number("gen_ai.usage.output_tokens") if served else 0,
        finish_reason=_first(str(tags.get("gen_ai.response.finish_reasons", ""))),
        error_type=str(tags.get("error.type", "")),
        error_message=str(tags.get("otel.status_description", "")),
        queue_place=phases[QUEUE_SPAN].number("convoy.queue.place") if QUEUE_SPAN in phases else 0,
        queue_ms=_took(phases.get(QUEUE_SPAN)),
        prefill_ms=_took(phases.get(PREFILL_SPAN)),
        decode_ms=_took(phases.get(DECODE_SPAN)),
        pod_ms=_took(served),
        tree=_node(top, top, {span.id: known for span, known in zip(_tries(top), tries, strict=True)}),
    )


def is_whole(request: Request, *, is_from_edge: bool) -> bool:
    """Whether no more spans are to be expected. Envoy and the pods send theirs on their own, so one may come before the other."""
    if is_from_edge and request.tree.place != _ENVOY:
        return False
    last = request.attempts[-1] if request.attempts else None
    return last is None or last.has_pod_span or last.flags == _NO_CONNECTION


def _tries(top: Span) -> list[Span]:
    return [child for child in top.children if child.service == _ENVOY and child.kind == "client"]


def _pod_span(span: Span) -> Span | None:
    return next((found for found in span.walk() if found.instance and found.kind == "server"), None)


def _attempt(top: Span, number: int, span: Span, pods: Mapping[str, str]) -> Attempt:
    served, address = _pod_span(span), span.text("upstream_address")
    pod = served.instance if served else span.text("convoy.pod") or pods.get(address, "") or address
    return Attempt(
        number=number,
        start_ms=_ms(span.start_us - top.start_us),
        ms=_ms(span.duration_us),
        address=address,
        pod=pod,
        status=_status(span),
        flags=span.text("response_flags"),
        error=_attempt_error(span, served, pod),
        has_pod_span=served is not None,
    )


def _attempt_error(span: Span, served: Span | None, pod: str) -> str:
    flags, status = span.text("response_flags"), _status(span)
    if flags in FLAGS:
        return FLAGS[flags].format(pod=pod)
    if status >= 400:
        return f"{status} {served.text('error.type') if served else ''}".strip()
    if reason := span.text("error.reason"):
        return f"{reason} ({flags})" if flags else reason
    return flags


def _node(top: Span, span: Span, tries: Mapping[str, Attempt]) -> Node:
    attempt = tries.get(span.id)
    below = [_node(top, child, tries) for child in span.children]
    below += [
        Node(name=_EVENTS.get(event.name, event.name), place=span.instance, start_ms=_ms(event.at_us - top.start_us))
        for event in span.events
    ]
    return Node(
        name=f"attempt {attempt.number}" if attempt else "request" if span.service == _ENVOY and span is top else span.name,
        place=attempt.pod if attempt else span.instance or span.service,
        start_ms=_ms(span.start_us - top.start_us),
        ms=_ms(span.duration_us),
        note=_note(span, attempt),
        error=attempt.error if attempt else _error(span),
        # Of what begins in the same microsecond, the shorter first: an empty queue, then prefill; the first token, then decode.
        children=sorted(below, key=lambda node: (node.start_ms, -1 if node.ms is None else node.ms)),
    )


def _note(span: Span, attempt: Attempt | None) -> str:
    if attempt:
        return ", ".join(part for part in (str(attempt.status or ""), attempt.address, attempt.flags) if part)
    if span.name == QUEUE_SPAN:
        place = span.number("convoy.queue.place")
        return f"place {place}" if place else ""
    if span.name == PREFILL_SPAN:
        return f"{span.number('gen_ai.usage.input_tokens')} tokens"
    if span.name == DECODE_SPAN:
        return f"{span.number('gen_ai.usage.output_tokens')} tokens"
    if span.kind == "server":
        return ", ".join(part for part in (str(_status(span) or ""), span.text("response_flags")) if part)
    return ""


def _error(span: Span) -> str:
    return ": ".join(part for part in (span.text("error.type"), span.text("otel.status_description")) if part)


def _status(span: Span) -> int:
    return span.number("http.status_code") or span.number("http.response.status_code")


def _is_left(span: Span) -> bool:
    return any(event.name == CANCELLED_EVENT for event in span.events)


def _path(url: str) -> str:
    """The path of Envoy's `http.url`, without the query."""
    return "/" + url.split("://", 1)[-1].partition("/")[2].partition("?")[0] if url else ""


def _first(reasons: str) -> str:
    """Jaeger writes a list as JSON text."""
    return str(json.loads(reasons)[0]) if reasons.startswith("[") and len(reasons) > 2 else reasons


def _took(span: Span | None) -> float | None:
    return None if span is None else _ms(span.duration_us)


def _ms(microseconds: int) -> float:
    return microseconds / 1000
