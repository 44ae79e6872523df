"""The upstream's HTTP: one session, its errors in our words, the key in a header and nowhere else."""

from __future__ import annotations

import os
import ssl
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import msgspec
from msgspec import Struct

from services.engine.backends.remote.bodies import COUNTED
from services.engine.generation import BackendError
from services.openai.errors import ApiError, EngineError
from services.openai.upstream_errors import UpstreamBusy, UpstreamError, UpstreamRefusal, UpstreamRefusedKey, UpstreamUnreachable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.settings import EngineSettings

_OK, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TOO_MANY, _SERVER_ERROR = 200, 401, 403, 404, 429, 500
_DONE, _FRAME, _USAGE = b"data: [DONE]", b"data: ", b'"usage":{'
_MAX_ERROR_BYTES = 64 * 1024
_BUSY_SECONDS = 1.0


class Piece(Struct):
    """Bytes of a stream as they came, how many frames they have, and whether they end it."""

    data: bytes
    num_tokens: int
    is_last: bool


class Whole(Struct):
    """A whole JSON answer."""

    data: bytes
    num_tokens: int


class _Error(Struct):
    message: str = ""
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


class _ErrorBody(Struct):
    error: _Error


class _Model(Struct):
    id: str


class _Models(Struct):
    data: list[_Model]


class Upstream:
    """One session to it. All methods raise `ApiError`s."""

    def __init__(self, settings: EngineSettings) -> None:
        """Opens nothing yet."""
        self._settings = settings
        self._base = settings.upstream_url.rstrip("/")

    async def open(self) -> None:
        """On the event loop. Raises `BackendError` if UPSTREAM_CA_FILE cannot be used."""
        key = self._settings.upstream_api_key
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._trust()),
            headers=headers | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._settings.upstream_connect_timeout_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Ends every connection."""
        if hasattr(self, "_session"):
            await self._session.close()

    async def models(self) -> set[str] | None:
        """The ids of what it serves; None if it does not tell."""
        async with self._answer("GET", "/models", "", None) as response:
            body = await response.read()
        try:
            return {one.id for one in msgspec.json.decode(body, type=_Models).data}
        except msgspec.DecodeError:
            return None

    async def greet(self, request_id: str, model: str, num_tokens: int) -> None:
        """A short conversation, read to its end."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": num_tokens}
        async with self._answer("POST", "/chat/completions", request_id, msgspec.json.encode(body)) as response:
            await response.read()

    async def ask(self, request_id: str, path: str, body: bytes, *, is_stream: bool) -> AsyncIterator[Piece | Whole]:
        """The answer, piece by piece as it comes, or whole."""
        async with self._answer("POST", path, request_id, body) as response:
            if not is_stream:
                data = await response.read()
                yield Whole(data, _completion_tokens(data) or 1)
                return
            async with aclosing(_pieces(response.content)) as pieces:  # type: ignore[type-var]  # an async generator
                async for piece in pieces:
                    yield piece

    @asynccontextmanager
    async def _answer(self, method: str, path: str, request_id: str, body: bytes | None) -> AsyncIterator[aiohttp.ClientResponse]:
        """A good answer; leaving before its end closes the connection."""
        headers = {"x-request-id": request_id} if request_id else {}
        has_begun = False
        try:
            async with self._session.request(method, self._base + path, data=body, headers=headers) as response:
                if response.status != _OK:
                    raise await _refusal(response, path)
                has_begun = True
                yield response
        except aiohttp.ClientConnectorError as error:
            raise UpstreamUnreachable(f"The upstream cannot be reached: {_reason(error)}") from error
        except aiohttp.ServerTimeoutError as error:
            limit = f"UPSTREAM_CONNECT_TIMEOUT_SECONDS={self._settings.upstream_connect_timeout_seconds:g}"
            raise UpstreamUnreachable(f"The upstream took no connection within {limit}") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            if has_begun:
                raise EngineError("The upstream broke off in the middle of its answer") from error
            raise UpstreamError(f"The upstream broke off without an answer: {type(error).__name__}") from error

    def _trust(self) -> ssl.SSLContext | bool:
        path = self._settings.upstream_ca_file
        if not path:
            return True
        context = ssl.create_default_context()
        try:
            context.load_verify_locations(path)
        except OSError as error:  # ssl.SSLError is one
            raise BackendError(f"UPSTREAM_CA_FILE={path}: {error.strerror or error}") from error
        return context


async def _pieces(content: aiohttp.StreamReader) -> AsyncIterator[Piece]:
    """Bytes as they come. A mark that is cut in two is found at the border."""
    tail = b""
    async for data in content.iter_any():
        window = tail + data
        is_last = _DONE in window
        yield Piece(data, max(0, window.count(_FRAME) - tail.count(_FRAME) - is_last - (_USAGE in window)), is_last)
        tail = window[-len(_DONE) + 1 :]


def _completion_tokens(body: bytes) -> int:
    try:
        usage = COUNTED.decode(body).usage
    except msgspec.DecodeError as error:
        raise UpstreamError("The upstream's answer is not JSON") from error
    return usage.completion_tokens if usage else 0


async def _refusal(response: aiohttp.ClientResponse, path: str) -> ApiError:
    """What a client is told of an answer that is not good."""
    body, status = await response.content.read(_MAX_ERROR_BYTES), response.status
    try:
        said = msgspec.json.decode(body, type=_ErrorBody).error
    except msgspec.DecodeError:
        said = _Error()
    words = said.message[:2000] or f"HTTP {status}"
    if status in {_UNAUTHORIZED, _FORBIDDEN}:
        return UpstreamRefusedKey(f"The upstream refuses this server's key (HTTP {status}); its operator has to set UPSTREAM_API_KEY")
    if status == _TOO_MANY:
        return UpstreamBusy(f"The upstream takes no more now: {words}", retry_after_seconds=_retry_after(response))
    if status >= _SERVER_ERROR:
        return UpstreamError(f"The upstream broke: {words}")
    if status == _NOT_FOUND and not said.message:
        return UpstreamError(f"The upstream has no {path} below UPSTREAM_URL")
    code = str(said.code) if said.code is not None else None
    return UpstreamRefusal(status, words, kind=said.type, param=said.param, code=code)


def _retry_after(response: aiohttp.ClientResponse) -> float:
    """Seconds; a date, which the standard allows as well, counts as not said."""
    for name, unit in (("retry-after-ms", 1000.0), ("Retry-After", 1.0)):
        text = response.headers.get(name, "")
        if text.replace(".", "", 1).isdigit():
            return float(text) / unit
    return _BUSY_SECONDS


def _reason(error: aiohttp.ClientConnectorError) -> str:
    """Without the address, which may be nobody's business."""
    return os.strerror(error.os_error.errno) if error.os_error.errno else type(error.os_error).__name__
