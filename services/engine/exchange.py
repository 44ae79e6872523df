"""One request and its answer as the pod tells of them: response headers, the access record, metrics."""

from __future__ import annotations

import re
import time
import uuid
from typing import TYPE_CHECKING

from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from aiohttp import web

    from services.engine.runs import Run
    from services.telemetry.metrics import Metrics

log = get_logger()

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
CLIENT_LEFT = 499
"""The status in records of a request whose client left before its answer was whole; nobody receives it."""


class Exchange:
    """What became of one request, gathered while it is handled. Times are on the clock of `time.monotonic()`."""

    def __init__(self, request: web.Request, pod: str) -> None:
        """Takes the caller's request id, or makes one."""
        given = request.headers.get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        self.pod = pod
        self.arrived_at = time.monotonic()
        self.run: Run | None = None
        self.num_prompt_tokens = 0
        self.has_begun = False
        """Whether headers have left, so that the answer can no longer become an error."""
        self.error_code = ""
        """Code of the error that the client was told, if any; in a stream it may come after status 200."""

    def headers(self) -> dict[str, str]:
        """What every response carries; durations as far as they are known when its headers leave."""
        headers = {"x-request-id": self.request_id, "x-convoy-pod": self.pod, "Server-Timing": self.server_timing(), "Server": "convoy"}
        if self.run is not None:
            headers["x-convoy-seed"] = str(self.run.prepared.request.sampling.seed)
            headers["x-convoy-queue"] = f"place={self.run.admitted.place}, wait={self.run.admitted.waited_seconds * 1000:.0f}ms"
        return headers

    def server_timing(self) -> str:
        """Durations in milliseconds, in the syntax of the Server-Timing header."""
        return ", ".join(f"{name};dur={milliseconds:.1f}" for name, milliseconds in self.durations().items())

    def durations(self) -> dict[str, float]:
        """Milliseconds in queue, prefill and decode as far as they are over, and in all."""
        now, run = time.monotonic(), self.run
        durations: dict[str, float] = {}
        if run is not None:
            durations["queue"] = run.admitted.waited_seconds
            if run.first_token_at:
                durations["prefill"] = run.first_token_at - run.started_at
            if run.finish_reason is not None:
                durations["decode"] = run.last_token_at - run.first_token_at
        if run is None or run.finish_reason is not None or run.is_over:
            durations["total"] = now - self.arrived_at
        return {name: seconds * 1000 for name, seconds in durations.items()}

    def record(self, metrics: Metrics, endpoint: str, status: int) -> None:
        """Writes the access record and counts the request."""
        run, total = self.run, time.monotonic() - self.arrived_at
        status_class = "cancelled" if status == CLIENT_LEFT else f"{status // 100}xx"
        metrics.requests.labels(metrics.model, endpoint, status_class).inc()
        metrics.duration.labels(metrics.model, endpoint).observe(total)
        if run is not None and run.first_token_at:
            metrics.first_token.observe(run.first_token_at - self.arrived_at)
        durations = self.durations() | {"total": total * 1000}
        log.info(
            "request.done",
            request_id=self.request_id,
            model=metrics.model,
            pod=self.pod,
            endpoint=endpoint,
            status=status,
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=run.num_tokens if run else 0,
            **({"finish_reason": run.finish_reason} if run and run.finish_reason else {}),
            **({"error": self.error_code} if self.error_code else {}),
            **{f"{name}_ms": round(milliseconds, 1) for name, milliseconds in durations.items()},
        )
