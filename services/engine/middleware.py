"""What happens to every request: it gets an `Exchange`, its errors become OpenAI's body once, and one access record is written."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from aiohttp.http import HttpProcessingError

from services.engine.exchange import CLIENT_LEFT, Exchange
from services.engine.keys import METRICS, POD
from services.openai.errors import ApiError, BadRequest, EngineError, MethodNotAllowed, NotFound, RequestTooLarge
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

log = get_logger()

EXCHANGE = "exchange"
_QUIET = {"/livez", "/readyz", "/healthz", "/health", "/metrics"}
"""Asked all the time by machines; recorded only if they fail with a server error other than 503."""


@web.middleware
async def exchange_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Wraps a handler: headers on every answer, errors translated, one record."""
    exchange = request[EXCHANGE] = Exchange(request, request.app[POD].name)
    metrics, endpoint = request.app[METRICS], _endpoint(request)
    in_progress = metrics.in_progress.labels(metrics.model)
    in_progress.inc()
    status, code = CLIENT_LEFT, "client_left"
    try:
        response, code = await _answer(request, handler)
        status = response.status
        if not response.prepared:
            response.headers.update(exchange.headers())
        return response
    finally:
        in_progress.dec()
        if endpoint not in _QUIET:
            exchange.record(metrics, endpoint, status, code)


async def _answer(request: web.Request, handler: Handler) -> tuple[web.StreamResponse, str]:
    """The handler's response, or its error as one, and the error's code."""
    try:
        return await handler(request), ""
    except ApiError as error:
        return error_response(error), error.code
    except web.HTTPException as error:
        translated = _translate(request, error)
        return error_response(translated), translated.code
    except asyncio.CancelledError:
        raise
    except ConnectionError:
        raise asyncio.CancelledError from None  # the client left while we wrote
    except Exception as error:  # the boundary: a bug becomes a 500 for this request and a line in the log, not a broken connection
        log.exception("request.broke", error_type=type(error).__name__, request_id=request[EXCHANGE].request_id)
        return error_response(EngineError("The server broke on this request")), EngineError.code


def error_response(error: ApiError) -> web.Response:
    """An error as a JSON response with the headers that belong to it."""
    response = web.Response(status=error.status, body=msgspec.json.encode(error.body()), content_type="application/json")
    if error.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = error.allow
    if error.code in {"draining", "not_ready"}:
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


class PodProtocol(web.RequestHandler):
    """aiohttp's connection, which answers what is not HTTP with OpenAI's error body, too."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,  # noqa: ARG002 - the signature is aiohttp's
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Overrides aiohttp's plain text page."""
        if request.writer.output_size > 0:
            raise ConnectionError("The answer is under way; it cannot become an error")
        reason = (message or "").splitlines()[0] if isinstance(exc, HttpProcessingError) and message else "it cannot be read"
        error = BadRequest(f"This is no valid HTTP request: {reason}")
        response = error_response(error)
        response.headers["x-request-id"] = "-"
        response.force_close()
        return response
