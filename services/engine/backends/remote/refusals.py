"""An upstream's answer that is not good, in our words: what its client shall know, and what is only for its operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from services.openai.upstream_errors import UpstreamBusy, UpstreamError, UpstreamRefusal, UpstreamRefusedKey

if TYPE_CHECKING:
    import aiohttp

    from services.openai.errors import ApiError

_CLIENT_ERROR, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TOO_MANY, _SERVER_ERROR = 400, 401, 403, 404, 429, 500
_MAX_BYTES = 64 * 1024
_MAX_CHARACTERS = 2000
_BUSY_SECONDS = 1.0


class _Error(Struct):
    message: str = ""
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


class _Body(Struct):
    """OpenAI's shape; Ollama and TGI say only a text."""

    error: _Error | str = ""


async def refusal(response: aiohttp.ClientResponse, path: str) -> ApiError:
    """The error for a status that is not 200; `path` is what was asked for."""
    said, status = _said(await response.content.read(_MAX_BYTES)), response.status
    words = said.message[:_MAX_CHARACTERS] or f"HTTP {status}"
    if status in {_UNAUTHORIZED, _FORBIDDEN}:
        return UpstreamRefusedKey(f"The upstream refuses this server's key (HTTP {status}); its operator has to set UPSTREAM_API_KEY")
    if status == _TOO_MANY:
        return UpstreamBusy(f"The upstream takes no more now: {words}", retry_after_seconds=_retry_after(response))
    if status >= _SERVER_ERROR:
        return UpstreamError(f"The upstream broke: {words}")
    if status < _CLIENT_ERROR:
        return UpstreamError(f"The upstream answered HTTP {status}, which is no answer")
    if status == _NOT_FOUND and not said.message:
        return UpstreamRefusal(status, f"The upstream has no {path} below UPSTREAM_URL")
    code = str(said.code) if said.code is not None else None
    return UpstreamRefusal(status, words, kind=said.type, param=said.param, code=code)


def _said(body: bytes) -> _Error:
    """What the body says, as far as it has OpenAI's shape or one of its relatives'."""
    try:
        said = msgspec.json.decode(body, type=_Body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Error()
    return _Error(said) if isinstance(said, str) else said


def _retry_after(response: aiohttp.ClientResponse) -> float:
    """Seconds; a date, which the standard allows as well, counts as not said."""
    for name, unit in (("retry-after-ms", 1000.0), ("Retry-After", 1.0)):
        text = response.headers.get(name, "")
        if text.isascii() and text.replace(".", "", 1).isdigit() and float(text) < 1e9:
            return float(text) / unit
    return _BUSY_SECONDS
