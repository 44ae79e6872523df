"""The body of a request: read within its limits, decoded where it delays nobody."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from services.engine.keys import POD
from services.openai.errors import RequestTimeout, RequestTooLarge, UnsupportedMediaType

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import StreamReader, web

T = TypeVar("T")

# Through Envoy the body comes at once or its own limit answers 408 first; this one is for those who ask the pod directly.
_BODY_SECONDS = 60
_LARGE_BYTES = 256 * 1024
_JSON = "application/json"


async def decoded_of(body: bytes, decode: Callable[[bytes], T]) -> T:
    """The body's request; a large body is decoded off the event loop, since finding what is wrong in it may take half a second."""
    return decode(body) if len(body) < _LARGE_BYTES else await asyncio.to_thread(decode, body)


async def read_body(request: web.Request) -> bytes:
    """The body, whose type and size were checked. Raises `UnsupportedMediaType`, `RequestTooLarge` or `RequestTimeout`."""
    if request.headers.get("Content-Type") is not None and request.content_type != _JSON:
        raise UnsupportedMediaType(f"Content-Type must be application/json, got {request.content_type[:100]}")
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMediaType(f"Content-Encoding must be identity, got {encoding[:100]}")
    limit = request.app[POD].settings.max_body_bytes
    if (request.content_length or 0) > limit:
        raise RequestTooLarge(f"The body has {request.content_length} bytes, more than MAX_BODY_BYTES={limit}")
    if request.content.is_eof():  # it came with the headers, as most do: nothing to wait for, and no timer's cost
        return await _read(request.content, limit)
    try:
        return await asyncio.wait_for(_read(request.content, limit), _BODY_SECONDS)
    except asyncio.TimeoutError:
        raise RequestTimeout(f"The body did not come within {_BODY_SECONDS} seconds") from None


async def _read(content: StreamReader, limit: int) -> bytes:
    """All of a body. Unlike aiohttp's `request.read` nothing keeps it: whoever waits for a slot needs its tokens only."""
    parts, size = [], 0
    while not content.at_eof():
        part = await content.readany()
        parts.append(part)
        size += len(part)
        if size > limit:
            raise RequestTooLarge(f"The body has more than MAX_BODY_BYTES={limit} bytes")
    return b"".join(parts)
