"""One request and its answer as the pod tells of them: response headers, the access record, metrics, its trace."""

from __future__ import annotations

import re
import time
import uuid
from typing import TYPE_CHECKING

from services.engine.client import client_of
from services.engine.telling import generated_of
from services.telemetry.logging import TRACE_ID, get_logger
from services.telemetry.spans import Answered
from services.telemetry.tracing import response_context_of, trace_id_of

if TYPE_CHECKING:
    from aiohttp import web

    from services.engine.admission import Ticket
    from services.engine.deadlines import Deadline
    from services.engine.runs import Run
    from services.engine.telling import Asked
    from services.openai.errors import ApiError
    from services.telemetry.metrics import Metrics
    from services.telemetry.tracing import Tracing

log = get_logger()

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
"""Others are told as `_OTHER`, as OpenTelemetry's conventions have it: a method that somebody makes up must not become a series."""
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
CLIENT_LEFT = 499
"""The status in records of a request whose client left before its answer was whole; nobody receives it."""


class Exchange:
    """What became of one request, gathered while it is handled. Times are on the clock of `time.monotonic()`."""

    def __init__(self, request: web.Request, pod: str, tracing: Tracing | None) -> None:
        """Takes the caller's request id, or makes one; without `tracing` (probes) there is no span."""
        given = request.headers.get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        self.method = request.method if request.method in METHODS else "_OTHER"
        self.pod = pod
        self.client = client_of(request.headers)
        self.arrived_at = time.monotonic()
        self._arrived_ns = time.time_ns()
        self.asked: Asked | None = None
        """What the model was asked, once that is known."""
        self.deadline: Deadline | None = None
        """When its answer must be there, if it says so."""
        self.run: Run | None = None
        self.has_begun = False
        """Whether headers have left, so that the answer can no longer become an error."""
        self.error: ApiError | None = None
        """What the client was told, if it was an error; in a stream it may come after status 200."""
        self._tracing = tracing
        self._span = tracing.begin(request.headers, self._arrived_ns) if tracing else None
        TRACE_ID.set(trace_id_of(self._span) if self._span else "")

    def headers(self) -> dict[str, str]:
        """What every response carries; durations as far as they are known when its headers leave."""
        headers = {"x-request-id": self.request_id, "x-convoy-pod": self.pod, "Server-Timing": self.server_timing(), "Server": "convoy"}
        if self._span is not None:
            headers["x-trace-id"] = trace_id_of(self._span)
            headers["traceresponse"] = response_context_of(self._span)
        if self.run is not None:
            headers["x-convoy-queue"] = _queue_words(self.run.ticket)
            if (seed := self.run.prepared.seed) is not None:
                headers["x-convoy-seed"] = str(seed)
        return headers

    def server_timing(self) -> str:
        """Durations in milliseconds, in the syntax of the Server-Timing header."""
        return ", ".join(f"{name};dur={milliseconds:.1f}" for name, milliseconds in self.durations().items())

    def durations(self) -> dict[str, float]:
        """Milliseconds in queue, prefill and decode as far as they are over, and in all."""
        now, run = time.monotonic(), self.run
        durations: dict[str, float] = {}
        if run is not None:
            durations["queue"] = run.ticket.waited_seconds
            if run.first_token_at:
                durations["prefill"] = run.first_token_at - run.started_at
            if run.finish_reason is not None:
                durations["decode"] = run.last_token_at - run.first_token_at
        if run is None or run.finish_reason is not None or run.is_over:
            durations["total"] = now - self.arrived_at
        return {name: seconds * 1000 for name, seconds in durations.items()}

    def record(self, metrics: Metrics, endpoint: str, status: int) -> None:
        """Writes the access record, counts the request and ends its span."""
        run, ended_at = self.run, time.monotonic()
        total = ended_at - self.arrived_at
        status_class = "cancelled" if status == CLIENT_LEFT else f"{status // 100}xx"
        metrics.requests.labels(metrics.model, endpoint, status_class).inc()
        metrics.duration.labels(metrics.model, endpoint).observe(total)
        if run is not None and run.first_token_at:
            metrics.first_token.observe(run.first_token_at - self.arrived_at)
        self._end_span(endpoint, status, ended_at)
        durations = self.durations() | {"total": total * 1000}
        log.info(
            "request.done",
            request_id=self.request_id,
            model=metrics.model,
            pod=self.pod,
            endpoint=endpoint,
            status=status,
            **({"client": self.client.id} if self.client.id else {}),
            prompt_tokens=run.num_prompt_tokens if run else self.asked.num_prompt_tokens if self.asked else 0,
            completion_tokens=run.num_tokens if run else 0,
            **({"finish_reason": run.finish_reason} if run and run.finish_reason else {}),
            **({"error": self.error.code} if self.error else {}),
            **{f"{name}_ms": round(milliseconds, 1) for name, milliseconds in durations.items()},
        )

    def _end_span(self, endpoint: str, status: int, ended_at: float) -> None:
        if self._tracing is None or self._span is None or not self._tracing.is_wanted:
            return

        def at(seconds: float) -> int:
            """Unix nanoseconds of a time on the monotonic clock; 0 stays "not reached"."""
            return self._arrived_ns + int((seconds - self.arrived_at) * 1e9) if seconds else 0

        self._tracing.end(
            self._span,
            Answered(
                method=self.method,
                route=endpoint,
                status=status,
                request_id=self.request_id,
                pod=self.pod,
                began_at=self._arrived_ns,
                ended_at=at(ended_at),
                is_cancelled=status == CLIENT_LEFT,
                client=self.client.id,
                error_code=self.error.code if self.error else "",
                error_message=self.error.message if self.error else "",
                generated=generated_of(self.asked, self.run, at) if self.asked else None,
            ),
        )


def _queue_words(ticket: Ticket) -> str:
    """Its place in the queue, how long it waited, and what wait was predicted when it came, if that could be known."""
    words = f"place={ticket.place}, wait={ticket.waited_seconds * 1000:.0f}ms"
    return words if ticket.predicted_wait is None else f"{words}, predicted={ticket.predicted_wait * 1000:.0f}ms"
