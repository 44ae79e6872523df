"""A receiver of OTLP/HTTP that keeps what it gets: a pod's spans without a collector."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.running import DEADLINE_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass(frozen=True)
class Received:
    """One span; times in seconds since 1970."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start: float
    end: float
    attributes: dict[str, Any]
    events: dict[str, float]
    status: tuple[int, str]
    resource: dict[str, Any]


@dataclass
class Receiver:
    """What came so far. While `fault` is "refuses" everything is answered 503, while it is "hangs" nothing is answered."""

    url: str = ""
    fault: Literal["", "refuses", "hangs"] = ""
    spans: list[Received] = field(default_factory=list)

    async def trace(self, trace_id: str, count: int) -> dict[str, Received]:
        """The spans of a trace by their names, when there are `count` of them."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(found := [span for span in self.spans if span.trace_id == trace_id]) < count:
            assert time.monotonic() < deadline, f"{count} spans of {trace_id}, have {[span.name for span in found]}"
            await asyncio.sleep(0.02)
        assert len(found) == count, [span.name for span in found]
        return {span.name: span for span in found}

    async def _take(self, request: web.Request) -> web.Response:
        if self.fault == "refuses":
            return web.Response(status=503)
        if self.fault == "hangs":
            await asyncio.Event().wait()
        for group in ExportTraceServiceRequest.FromString(await request.read()).resource_spans:
            resource = _plain(group.resource.attributes)
            self.spans += [_received(span, resource) for scope in group.scope_spans for span in scope.spans]
        return web.Response(content_type="application/x-protobuf")


@contextlib.asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver on a free port."""
    taken = Receiver()
    app = web.Application()
    app.router.add_post("/v1/traces", taken._take)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    taken.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield taken
    finally:
        await runner.cleanup()


def _received(span: Any, resource: dict[str, Any]) -> Received:
    return Received(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=span.kind,
        start=span.start_time_unix_nano / 1e9,
        end=span.end_time_unix_nano / 1e9,
        attributes=_plain(span.attributes),
        events={event.name: event.time_unix_nano / 1e9 for event in span.events},
        status=(span.status.code, span.status.message),
        resource=resource,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)
