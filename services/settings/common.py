"""What several processes read: the log, the traces, and how much a pod holds."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from msgspec import Meta, Struct

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]

LIVE = {"applies": "live"}
"""A change in .env is in force within a second, while everything runs; the others wait for what `applies` names."""
RESTART_ENVOY = {"applies": "convoy restart envoy"}
RESTART_PODS = {"applies": "convoy restart pods"}
"""What holds for the pods' settings where nothing is said."""
RESTART_EDGE = {"applies": "convoy restart edge"}
RESTART_ALL = {"applies": "convoy restart"}
"""Read by pods and edge, or by every process."""
SCALE = {"applies": "convoy scale"}
START = {"applies": "convoy down, convoy up"}
"""What holds for all other settings where nothing is said."""
SECRET = {**START, "secret": True}
"""Neither printed nor passed on to processes."""
PASSED_SECRET = {**SECRET, "passed": True}
"""Not printed, and passed on to the runner and its pods alone."""


class CommonSettings(Struct, frozen=True, kw_only=True):
    """What every process of Convoy reads."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="Least severe log record that is written.", extra=RESTART_ALL),
    ] = "info"
    log_format: Annotated[
        Literal["json", "console"], Meta(description="One JSON object a line, or text for people.", extra=RESTART_ALL)
    ] = "json"
    state_dir: Annotated[
        str, Meta(min_length=1, description="Folder of run-time state: logs, Envoy's live files, the pods file, process ids.", extra=START)
    ] = ".convoy"


class TelemetrySettings(CommonSettings, frozen=True, kw_only=True):
    """Where traces go, and how many."""

    otel_exporter_otlp_endpoint: Annotated[
        str,
        Meta(
            pattern=r"^$|^http://[^/\s]+/?$",
            description="Base address of a collector's OTLP/HTTP receiver, such as http://127.0.0.1:4318; empty sends nothing. "
            "`convoy up` sets it where it starts a collector.",
            extra=START,
        ),
    ] = ""
    trace_sample_percent: Annotated[
        float,
        Meta(
            ge=0,
            le=100,
            description="Share of requests that are traced, of those whose caller has not decided (traceparent).",
            extra=RESTART_ENVOY,
        ),
    ] = 100


class CapacitySettings(TelemetrySettings, frozen=True, kw_only=True):
    """What pods and edge must agree on: how much one pod holds, and the time limits, in one order."""

    max_concurrent_requests: Annotated[
        int, Meta(ge=1, le=4096, description="Requests that one pod generates at the same time (slots).")
    ] = 16
    queue_capacity: Annotated[
        int, Meta(ge=0, le=100_000, description="Requests that wait in one pod for a slot; one more is answered 429 queue_full.")
    ] = 64
    max_body_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 30, description="Largest request body in bytes; a larger one is answered 413.", extra=RESTART_ALL)
    ] = 8 * 1024 * 1024
    queue_timeout_seconds: Annotated[
        Seconds,
        Meta(
            description="Longest wait for a slot; what would wait longer is answered 429 deadline_unreachable, at once if it can be told.",
            extra=RESTART_ALL,
        ),
    ] = 10
    keepalive_seconds: Annotated[
        Seconds,
        Meta(
            description="A stream silent for so long sends a `: keepalive` comment, before its first token together with its headers.",
            extra=RESTART_ALL,
        ),
    ] = 15
    first_token_timeout_seconds: Annotated[
        Seconds, Meta(description="A stream without response headers for so long is tried on another pod.", extra=LIVE)
    ] = 20
    hang_timeout_seconds: Annotated[
        Seconds, Meta(description="A pod whose event loop is silent for so long is killed and started again.", extra=RESTART_ALL)
    ] = 30
    stall_timeout_seconds: Annotated[
        Seconds,
        Meta(
            description="A generation without a token for so long, reading its prompt included, ends with 500 engine_error. If the engine "
            "stands still the pod is not ready, and starts anew unless it works again within the same time. ENGINE=remote: 504, no more.",
            extra=RESTART_ALL,
        ),
    ] = 60
    slow_client_timeout_seconds: Annotated[
        Seconds,
        Meta(description="A client that reads nothing of a waiting answer for so long loses its connection.", extra=RESTART_ALL),
    ] = 60
    request_timeout_seconds: Annotated[
        Seconds,
        Meta(
            description="Longest time for a whole JSON answer; past it 504 upstream_timeout. It caps x-request-deadline-ms, too.",
            extra=LIVE,
        ),
    ] = 600
    drain_timeout_seconds: Annotated[
        Seconds, Meta(description="How long a stopping pod lets its running requests finish.", extra=START)
    ] = 30

    def problem(self) -> str | None:
        """The one-line reason why these values do not fit together, or None.

        The time limits have one order: each later one must leave the earlier one time to act.
        """
        order = [
            "queue_timeout_seconds",
            "keepalive_seconds",
            "first_token_timeout_seconds",
            "hang_timeout_seconds",
            "stall_timeout_seconds",
            "request_timeout_seconds",
        ]
        for lower, upper in itertools.pairwise(order):
            if getattr(self, lower) >= getattr(self, upper):
                return f"{lower.upper()}={getattr(self, lower):g} must be less than {upper.upper()}={getattr(self, upper):g}"
        return None
