"""Spans on their way to a collector: a bounded queue and a thread that sends. A collector that is slow or gone costs spans, no request."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

OnDrop = Callable[[str, int], None]

MAX_QUEUED_SPANS = 4096
_MAX_BATCH_SPANS = 256
_SEND_EVERY_MILLISECONDS = 1000
_SEND_TIMEOUT_SECONDS = 5.0
_STOP_SECONDS = 3.0


class SpanQueue:
    """At most `MAX_QUEUED_SPANS` finished spans wait; more are dropped, and told."""

    def __init__(self, endpoint: str, on_drop: OnDrop) -> None:
        """Starts the thread that sends to the OTLP/HTTP receiver at `endpoint`.

        `on_drop(reason, count)` is called from any thread: `queue_full`, or `not_taken` by the collector in time.
        """
        exporter = _TellingExporter(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=_SEND_TIMEOUT_SECONDS), on_drop)
        self.processor = _BoundedProcessor(exporter, on_drop)

    def stop(self) -> None:
        """Sends what waits, for `_STOP_SECONDS` at most; the SDK itself would try for half a minute."""
        sender = threading.Thread(target=self.processor.shutdown, daemon=True)
        sender.start()
        sender.join(_STOP_SECONDS)


class _BoundedProcessor(BatchSpanProcessor):
    """The SDK's processor would log a full queue and drop an older span unseen; so its queue is never let to overflow."""

    def __init__(self, exporter: _TellingExporter, on_drop: OnDrop) -> None:
        super().__init__(
            exporter,
            max_queue_size=MAX_QUEUED_SPANS,
            max_export_batch_size=_MAX_BATCH_SPANS,
            schedule_delay_millis=_SEND_EVERY_MILLISECONDS,
        )
        self._exporter = exporter
        self._on_drop = on_drop
        self._num_queued = 0

    def on_end(self, span: ReadableSpan) -> None:
        if self._num_queued - self._exporter.num_taken >= MAX_QUEUED_SPANS:
            self._on_drop("queue_full", 1)
            return
        self._num_queued += 1
        super().on_end(span)


class _TellingExporter(SpanExporter):
    """Counts what it was given and tells what it could not pass on."""

    def __init__(self, exporter: SpanExporter, on_drop: OnDrop) -> None:
        self._exporter = exporter
        self._on_drop = on_drop
        self.num_taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.num_taken += len(spans)
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._on_drop("not_taken", len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
