"""The upstream's HTTP: one session, its errors in our words, the key in a header and nowhere else."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import aiohttp
import msgspec
from msgspec import Struct

from services.engine.backends.remote.frames import Frames, whole
from services.engine.backends.remote.refusals import refusal
from services.engine.generation import BackendError
from services.openai.upstream_errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.engine.backends.remote.frames import Piece
    from services.settings import EngineSettings

_OK = 200
_JSON, _EVENTS = "application/json", "text/event-stream"
# Below the 5 s after which uvicorn, and so vLLM, closes an idle connection: a request that meets the closing one would be lost.
_KEEPALIVE_SECONDS = 4.0
# The body's end comes with the stream's, or a moment later; a connection is used again only if it was read.
_END_SECONDS = 0.05
# Of a whole answer, which a pod holds until all of it is there: 128 k tokens are a hundredth, 40 k tokens with 20 logprobs each all of it.
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
# A list of models that takes longer will not come.
_MODELS_SECONDS = 15.0
# OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH.
_OTHER_NAME = (62, 64)


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
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """On the event loop. Raises `BackendError` if UPSTREAM_CA_FILE cannot be used."""
        key = self._settings.upstream_api_key
        headers = {"Accept-Encoding": "identity", "Content-Type": _JSON}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS, ssl=self._trust()),
            headers=headers | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=self._time_limit(None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Ends every connection."""
        if self._session is not None:
            await self._session.close()

    async def models(self) -> set[str] | None:
        """The ids of what it serves; None if it does not tell."""
        async with self._answer("GET", "/models", "", None, within_seconds=_MODELS_SECONDS) as response:
            body = await response.read()
        try:
            return {one.id for one in msgspec.json.decode(body, type=_Models).data}
        except msgspec.DecodeError:
            return None

    async def ask(self, request_id: str, path: str, body: bytes, *, is_stream: bool) -> AsyncIterator[Piece]:
        """The answer: whole frames as they come, or all of it; leaving before its end closes the connection."""
        async with self._answer("POST", path, request_id, body) as response:
            if not is_stream:
                yield whole(await _all(response.content))
                return
            if response.content_type != _EVENTS:
                raise UpstreamError(f"The upstream answered {response.content_type[:100]} where a stream was asked for")
            frames = Frames()
            async for data in response.content.iter_any():
                piece = frames.take(data)
                if piece is not None:
                    if piece.finish_reason is not None:
                        piece.data += await _rest(response.content)
                    yield piece
                    if piece.finish_reason is not None:
                        return
            last = frames.close()
            if last is not None:
                yield last

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, request_id: str, body: bytes | None, within_seconds: float | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A good answer; leaving before its end closes the connection. Redirects are not followed: the key is for this address alone."""
        assert self._session is not None
        headers = {"x-request-id": request_id} if request_id else {}
        url, limit, has_begun = self._base + path, self._time_limit(within_seconds), False
        try:
            async with self._session.request(method, url, data=body, headers=headers, timeout=limit, allow_redirects=False) as response:
                if response.status != _OK:
                    raise await refusal(response, path)
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise UpstreamError("The upstream compressed its answer, which it was asked not to do")
                has_begun = True
                yield response
        except aiohttp.ClientConnectorError as error:
            raise UpstreamUnreachable(f"The upstream cannot be reached: {_reason(error)}") from error
        except aiohttp.ConnectionTimeoutError as error:
            seconds = f"UPSTREAM_CONNECT_TIMEOUT_SECONDS={self._settings.upstream_connect_timeout_seconds:g}"
            raise UpstreamUnreachable(f"The upstream took no connection within {seconds}") from error
        except asyncio.TimeoutError as error:
            raise UpstreamTimeout("The upstream did not answer in time") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            what = "in the middle of its answer" if has_begun else f"without an answer: {type(error).__name__}"
            raise UpstreamError(f"The upstream broke off {what}") from error

    def _time_limit(self, seconds: float | None) -> aiohttp.ClientTimeout:
        """Generations have none here: how long they may be silent is for the watchdog to say, how long they may take for the edge."""
        return aiohttp.ClientTimeout(total=seconds, connect=self._settings.upstream_connect_timeout_seconds)

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


async def _all(content: aiohttp.StreamReader) -> bytes:
    """A whole answer. Raises `UpstreamError` for one that does not end."""
    answer = bytearray()
    async for data in content.iter_any():
        answer += data
        if len(answer) > _MAX_ANSWER_BYTES:
            raise UpstreamError(f"The upstream's answer has more than {_MAX_ANSWER_BYTES >> 20} MiB")
    return bytes(answer)


async def _rest(content: aiohttp.StreamReader) -> bytes:
    """What comes behind the last frame, which is nearly always nothing but the body's end."""
    rest, end = b"", time.monotonic() + _END_SECONDS
    with suppress(asyncio.TimeoutError, aiohttp.ClientError, ConnectionError):
        while not content.at_eof() and (left := end - time.monotonic()) > 0:
            rest += await asyncio.wait_for(content.readany(), left)
    return rest


def _reason(error: aiohttp.ClientConnectorError) -> str:
    """Without the address, which may be nobody's business."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        code = getattr(error.certificate_error, "verify_code", _OTHER_NAME[0])
        why = "is for another name" if code in _OTHER_NAME else "is not trusted; UPSTREAM_CA_FILE names what to trust"
        return f"its certificate {why}"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name is not known"
    if isinstance(error, aiohttp.ClientSSLError):
        return f"TLS failed ({getattr(error.os_error, 'reason', None) or type(error.os_error).__name__})"
    number = error.os_error.errno
    return os.strerror(number) if number is not None and number > 0 else type(error.os_error).__name__
