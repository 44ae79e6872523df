"""An upstream that does as it is told, and a remote pod before it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
from aiohttp import web

from tests.running import DEADLINE_SECONDS, RunningPods, running_pods

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable

KEY = "upstream-key-that-nobody-may-see"
FRAME = b'data: {"choices":[{"index":0,"delta":{"content":"\xc3\xa9"}}],"odd_field":[1, 2]}\n\n'
DONE = b"data: [DONE]\n\n"
QUESTION = [{"role": "user", "content": "Hello!"}]
MESSAGE = {"messages": QUESTION}


@dataclass
class Upstream:
    """A server that answers as it is told, and remembers."""

    url: str = ""
    status: int = 200
    body: bytes = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":7}}'
    headers: dict[str, str] = field(default_factory=dict)
    frames: list[bytes] = field(default_factory=lambda: [FRAME, FRAME, DONE])
    pause_seconds: float = 0.0
    """After each frame, the last one too, so that they and the body's end arrive one by one."""
    is_endless: bool = False
    is_silent: bool = False
    """It takes the request and says nothing; with `frames`, after them."""
    seen: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    connections: set[int] = field(default_factory=set)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def num_asked(self) -> int:
        """Generations that it was asked for."""
        return sum(asked is not None for _, _, asked in self.seen)

    async def models(self, request: web.Request) -> web.Response:
        """GET …/models."""
        self.seen.append((request.path, dict(request.headers), None))
        return web.json_response({"data": [{"id": "big"}, {"id": "small"}]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """POST …: JSON or a stream."""
        asked = msgspec.json.decode(await request.read())
        self.seen.append((request.path, dict(request.headers), asked))
        self.connections.add(request.transport.get_extra_info("peername")[1])  # type: ignore[union-attr]  # it is connected
        try:
            return await self._answer(request, is_stream=bool(asked.get("stream")))
        except (ConnectionError, asyncio.CancelledError):
            self.left.set()
            raise

    async def _answer(self, request: web.Request, *, is_stream: bool) -> web.StreamResponse:
        if self.is_silent and not (is_stream and self.frames):
            await asyncio.sleep(DEADLINE_SECONDS)
        if self.status != 200 or not is_stream:
            return web.Response(status=self.status, body=self.body, headers={"Content-Type": "application/json"} | self.headers)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"} | self.headers)
        await response.prepare(request)
        for frame in self.frames:
            await response.write(frame)
            await asyncio.sleep(self.pause_seconds)
        while self.is_endless:
            await response.write(FRAME)
            await asyncio.sleep(0.01)  # the pace of its tokens
        if self.is_silent:
            await asyncio.sleep(DEADLINE_SECONDS)
        return response


@contextlib.asynccontextmanager
async def upstream_server(tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[Upstream]:
    """It listens on a free port, with a path before /v1."""
    upstream = Upstream()
    app = web.Application()
    app.add_routes([web.get("/some/prefix/v1/models", upstream.models), web.post("/some/prefix/v1/{rest:.*}", upstream.answer)])
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls, reuse_address=True)
    await site.start()
    upstream.url = f"http{'s' if tls else ''}://localhost:{runner.addresses[0][1]}/some/prefix/v1"
    try:
        yield upstream
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def forwarding(upstream_url: str, *, is_ready: bool = True, **settings: object) -> AsyncIterator[RunningPods]:
    """A remote pod before it; starting it must not stop the upstream, which may live on this event loop."""
    wanted = {"engine": "remote", "upstream_url": upstream_url, "upstream_api_key": KEY, "model_name": "big", "pods": 1} | settings
    with running_pods(0, **wanted) as pods:
        if is_ready:
            await asyncio.to_thread(pods.until_ready, int(str(wanted["pods"])))
        yield pods


async def post(url: str, **body: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        return response.status, dict(response.headers), await response.read()


async def refused(url: str, **body: Any) -> tuple[int, str]:
    """Status and code of an error."""
    status, _, answer = await post(url, **body)
    return status, str(msgspec.json.decode(answer)["error"]["code"])


async def readiness(pods: RunningPods) -> dict[str, Any]:
    """What the pod's `/readyz` says."""
    return await asyncio.to_thread(pods.readiness, pods.url) if pods.urls else {}


async def until(condition: Callable[[dict[str, Any]], bool], pods: RunningPods) -> None:
    """Waits until what the pod says of itself is as it should be."""
    end = asyncio.get_running_loop().time() + DEADLINE_SECONDS
    while not condition(said := await readiness(pods)):
        assert asyncio.get_running_loop().time() < end, f"{said}; {pods.log()}"
        await asyncio.sleep(0.02)
