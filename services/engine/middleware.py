"""What happens to every request: it gets an `Exchange`, its errors become OpenAI's body once, and one access record is written."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from services.engine.exchange import CLIENT_LEFT, Exchange
from services.engine.keys import METRICS, POD, TRACING
from services.openai.errors import (
    ApiError,
    BadRequest,
    EngineError,
    MethodNotAllowed,
    NotFound,
    RequestTooLarge,
)
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

log = get_logger()

EXCHANGE = "exchange"
_REASONS = {
    *("draining", "not_ready", "deadline_exceeded"),
    *("upstream_error", "upstream_refused_key", "upstream_unreachable", "upstream_timeout"),
}
"""Codes that Envoy reads from a header: how it counts a 5xx must not depend on its body."""
_QUIET = {"/livez", "/readyz", "/healthz", "/health", "/metrics"}
"""Asked all the time by machines: neither recorded nor counted nor traced."""


@web.middleware
async def exchange_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Wraps a handler: headers on every answer, errors translated, one record."""
    app, endpoint = request.app, _endpoint(request)
    is_quiet = endpoint in _QUIET
    exchange = request[EXCHANGE] = Exchange(request, app[POD].name, None if is_quiet else app[TRACING])
    if is_quiet:
        return await _answer(request, handler)
    metrics = app[METRICS]
    status = CLIENT_LEFT
    with metrics.in_progress.track_inprogress():
        try:
            response = await _answer(request, handler)
            status = response.status
            return response
        finally:
            exchange.record(metrics, endpoint, status)


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The handler's response, or its error as one; with our headers, unless they have left already."""
    exchange: Exchange = request[EXCHANGE]
    try:
        response = await handler(request)
    except ApiError as error:
        response = _told(exchange, error)
    except web.HTTPException as error:
        response = _told(exchange, _translate(request, error))
    except ConnectionError:
        raise asyncio.CancelledError from None  # the client left while we wrote
    except Exception as error:  # the boundary: a bug becomes a 500 for this request and a line in the log, not a broken connection
        log.exception("request.broke", error_type=type(error).__name__, request_id=exchange.request_id)
        if exchange.has_begun:
            exchange.error = EngineError("The server broke on this request")
            if request.transport is not None:
                request.transport.abort()  # the client shall see that its stream broke, not a clean end
            raise asyncio.CancelledError from None
        response = _told(exchange, EngineError("The server broke on this request"))
    if not response.prepared:
        response.headers.update(exchange.headers())
    return response


def _told(exchange: Exchange, error: ApiError) -> web.Response:
    exchange.error = error
    return error_response(error)


def error_response(error: ApiError) -> web.Response:
    """An error as a JSON response with the headers that belong to it."""
    response = web.Response(status=error.status, body=msgspec.json.encode(error.body()), content_type="application/json")
    if error.retry_after_seconds is not None:
        # Whole seconds is all that the standard knows; the OpenAI packages read the exact time from a header of their own.
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
        response.headers["retry-after-ms"] = str(math.ceil(error.retry_after_seconds * 1000))
    if error.is_everywhere:
        response.headers["x-envoy-ratelimited"] = "true"  # Envoy need not ask another pod
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = error.allow
    if error.code in _REASONS:
        response.headers["x-convoy-reason"] = error.code
    return response


def _translate(request: web.Request, error: web.HTTPException) -> ApiError:
    """Errors of aiohttp itself in the words of the API."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allow = ", ".join(sorted(error.allowed_methods))
        return MethodNotAllowed(f"{request.method} is not allowed for {request.path}; allowed: {allow}", allow=allow)
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return RequestTooLarge(f"The body is larger than MAX_BODY_BYTES={request.app[POD].settings.max_body_bytes}")
    if error.status == web.HTTPNotFound.status_code:
        return NotFound(f"There is no {request.path}")
    return BadRequest(error.reason)


def _endpoint(request: web.Request) -> str:
    """The route's pattern, so that made-up paths make no new label."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else "other"
