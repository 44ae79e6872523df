"""`convoy trace`: finds the trace of a request in Jaeger and shows it, or says why there is none."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode, urlsplit

import msgspec
import psutil

from services.ops import probe, processes, request_log, trace_tree
from services.ops.state import OpsError
from services.ops.terminal import Terminal
from services.ops.trace_facts import describe, is_whole
from services.ops.trace_view import as_json, draw
from services.ops.trace_words import milliseconds
from services.settings import EdgeSettings, OpsSettings, load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.ops.request_log import Access, Done
    from services.ops.state import Run, StateDir
    from services.ops.trace_tree import Span

# Envoy and pods send within a second, the collector decides after 3 s, Jaeger keeps at once; Envoy's log may lag as well.
WAIT_SECONDS = 10.0
_LOOK_EVERY_SECONDS = 0.3
_JAEGER_TIMEOUT_SECONDS = 5.0
# Longer than Jaeger keeps traces (jaeger/config.yaml).
_SEARCH_HOURS = 24

_TRACE_ID = re.compile(r"(?:00-)?([0-9a-f]{32})(?:-[0-9a-f]{16}-[0-9a-f]{2})?")


@dataclass
class Found:
    """What is known of what was asked for: the topmost spans of its requests, and the edge's records, newest first."""

    records: list[Access]
    trace_id: str = ""
    tops: list[Span] = field(default_factory=list)


def show(state: StateDir, wanted: str, *, is_json: bool, is_patient: bool) -> None:
    """Prints the trace of a request id, a trace id or a `traceresponse`; raises `OpsError` if there is none, and says why."""
    run = state.run()
    if run is None:
        raise OpsError("nothing runs; start it with `convoy up`")
    whole = _TRACE_ID.fullmatch(wanted)
    wanted = whole.group(1) if whole else wanted
    terminal = Terminal()
    jaeger = run.parts.get("jaeger", "")
    found = _wait(state, Jaeger(jaeger) if jaeger else None, wanted, terminal if is_patient else None)
    terminal.settle()
    if not found.tops:
        raise OpsError(_why_not(state, run, wanted, found.records))
    pods = _pod_names(state, found.tops)
    shown = [describe(top, pods) for top in found.tops]
    others = [record.trace_id for record in found.records if record.trace_id != found.trace_id]
    if is_json:
        terminal.say(as_json(found.trace_id, shown))
        return
    for request in shown:
        terminal.show(draw(found.trace_id, request, terminal.console.width))
    if others:
        terminal.say(f"Other requests had the same id; their traces: {', '.join(filter(None, others))}")


class Jaeger:
    """Jaeger's HTTP API."""

    def __init__(self, url: str) -> None:
        """`url`: where it answers, such as http://127.0.0.1:16686."""
        self._url = url

    def trace(self, trace_id: str) -> dict[str, list[Span]]:
        """The trace with this id, empty if Jaeger has none."""
        return self._get(f"/api/traces/{trace_id}")

    def search(self, service: str, request_id: str) -> dict[str, list[Span]]:
        """The traces in which a span of `service` has this request id."""
        now = time.time()
        query = {
            "service": service,
            "tags": msgspec.json.encode({trace_tree.REQUEST_ID: request_id}).decode(),
            "start": int((now - _SEARCH_HOURS * 3600) * 1e6),
            "end": int((now + 60) * 1e6),
            "limit": 20,
        }
        return self._get(f"/api/traces?{urlencode(query, quote_via=quote)}")

    def _get(self, path: str) -> dict[str, list[Span]]:
        host = urlsplit(self._url)
        status, body = probe.get(host.hostname or "", host.port or 80, path, _JAEGER_TIMEOUT_SECONDS)
        try:
            return trace_tree.decode(body)
        except msgspec.DecodeError as error:
            what = f"answered status {status}, not with traces" if status else "does not answer"
            raise OpsError(f"Jaeger at {self._url} {what}; `convoy logs jaeger` may tell why") from error


def _wait(state: StateDir, jaeger: Jaeger | None, wanted: str, terminal: Terminal | None) -> Found:
    """Looks until the trace is whole, or until no more can come; without `terminal` once."""
    deadline = time.monotonic() + (WAIT_SECONDS if terminal else 0)
    while True:
        found = _look(state, jaeger, wanted)
        ended_at = max((span.end_us / 1e6 for top in found.tops for span in top.walk()), default=0.0)
        ended_at = ended_at or (found.records[0].ended_at if found.records else 0.0)
        is_old = ended_at > 0 and time.time() - ended_at > WAIT_SECONDS
        if jaeger is None or is_old or time.monotonic() >= deadline or _is_whole(found):
            return found
        if terminal:
            terminal.live(f"waiting for the trace of {wanted} (it is whole 3 to 6 s after its request)")
        time.sleep(_LOOK_EVERY_SECONDS)


def _is_whole(found: Found) -> bool:
    return bool(found.tops) and all(is_whole(describe(top, {}), is_from_edge=bool(found.records)) for top in found.tops)


def _look(state: StateDir, jaeger: Jaeger | None, wanted: str) -> Found:
    records = request_log.access(state.logs, wanted)
    if jaeger is None:
        return Found(records=records)
    traces: dict[str, list[Span]] = {}
    is_trace_id = bool(_TRACE_ID.fullmatch(wanted))
    for trace_id in (wanted if is_trace_id else "", *(record.trace_id or "" for record in records[:1])):
        traces |= jaeger.trace(trace_id) if trace_id and not traces else {}
    if not traces and not records:  # sent to a pod directly, or Envoy has not written its record yet
        traces = jaeger.search("envoy", wanted) or jaeger.search("engine", wanted)
    found = Found(records=records)
    for trace_id, roots in traces.items():
        tops = [top for top in trace_tree.requests(roots) if trace_id == wanted or top.text(trace_tree.REQUEST_ID) == wanted]
        if tops and (not found.tops or tops[-1].start_us > found.tops[-1].start_us):
            found.trace_id, found.tops = trace_id, tops
    return found


def _pod_names(state: StateDir, tops: Sequence[Span]) -> Mapping[str, str]:
    named = {f"{pod.host}:{pod.port}": pod.name for pod in state.pods().pods}
    addresses = {span.text("upstream_address") for top in tops for span in top.walk()} - {""}
    return request_log.pods_at(state.logs, addresses - named.keys()) | named


def _why_not(state: StateDir, run: Run, wanted: str, records: Sequence[Access]) -> str:
    done = request_log.done(state.logs, wanted)
    if not records and not done:
        kind = "trace" if _TRACE_ID.fullmatch(wanted) else "request"
        return f"no {kind} {wanted} is known, neither to the logs nor to Jaeger; one that still runs is told when it is over"
    return f"{wanted} was answered ({_told(records, done)}), but there is no trace of it: {_reason(state, run)}"


def _told(records: Sequence[Access], done: Sequence[Done]) -> str:
    """`POST /v1/chat/completions, 200, engine-1, 413 ms: 0 ms queue, 21 ms prefill, 377 ms decode of 56 tokens`."""
    pod = done[0] if done else None
    if records:
        edge = records[0]
        told = f"{edge.method} {edge.path}, {edge.status or 'no status'}, {edge.pod or 'no pod'}, {milliseconds(edge.total_ms or 0)}"
    else:
        assert pod
        told = f"{pod.endpoint}, {pod.status}, {pod.pod}, {milliseconds(pod.total_ms)}"
    if pod is None or pod.queue_ms is None:
        return told
    phases = [f"{milliseconds(pod.queue_ms)} queue"]
    phases += [f"{milliseconds(pod.prefill_ms)} prefill"] if pod.prefill_ms is not None else []
    phases += [f"{milliseconds(pod.decode_ms)} decode of {pod.completion_tokens} tokens"] if pod.decode_ms is not None else []
    return f"{told}: {', '.join(phases)}"


def _reason(state: StateDir, run: Run) -> str:
    env = _environment(state)
    edge, ops = load(EdgeSettings, env), load(OpsSettings, env)
    if "jaeger" not in run.parts:
        is_off = ops.observability == "off"
        cure = "start without OBSERVABILITY=off" if is_off else "`make tools` builds it, then `convoy down` and `convoy up`"
        return f"no Jaeger runs; {cure}"
    if edge.trace_sample_percent < 100:
        return f"it was not sampled (TRACE_SAMPLE_PERCENT={edge.trace_sample_percent:g}); raise that to trace more"
    if "otel-collector" not in run.parts and edge.otel_exporter_otlp_endpoint:
        return f"spans go to OTEL_EXPORTER_OTLP_ENDPOINT={edge.otel_exporter_otlp_endpoint}; look there, or leave that out"
    if ops.trace_keep_percent < 100:
        return f"it was not kept (TRACE_KEEP_PERCENT={ops.trace_keep_percent:g}); raise that to keep more"
    return "its caller decided so (traceparent), or Jaeger or the collector did not take it; `convoy status` shows whether they run"


def _environment(state: StateDir) -> Mapping[str, str]:
    """The settings with which the stack was started: those of this shell may be others."""
    supervisor = processes.supervisor(processes.find(state.path))
    try:
        return supervisor.environ() if supervisor else {}
    except psutil.Error:
        return {}
