"""A stand-in pod: answers like an engine pod's outside, fails in whatever way a test asks for. No model, no queue."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any, Literal

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multidict import CIMultiDictProxy

Behaviour = Literal["answer", "429", "500", "503", "reset", "hang"]


class StubPod:
    """One pod in this process. `behaviour` says what generation requests get; `state` what `/readyz` tells."""

    def __init__(self, name: str) -> None:
        """Listens once `start` was awaited, on a free port."""
        self.name = name
        self.port = 0
        self.state: Literal["loading", "ready", "draining"] = "ready"
        self.behaviour: Behaviour = "answer"
        self.chunks = 3
        self.pause = asyncio.Event()
        """A stream waits for it before its last chunk; set unless a test clears it."""
        self.pause.set()
        self.seen: list[tuple[str, str, CIMultiDictProxy[str]]] = []
        """Method, raw path and headers of each request but health questions."""
        self.started_at = 0.0
        self._runner: web.AppRunner | None = None

    async def start(self) -> StubPod:
        """Begins to listen; again on the same port after `stop`."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def stop(self) -> None:
        """Stops listening and breaks every connection, as a killed process does."""
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    def entry(self) -> dict[str, Any]:
        """Its line of the pods file."""
        return {"name": self.name, "host": "127.0.0.1", "port": self.port, "pid": os.getpid(), "started_at": self.started_at}

    async def _readyz(self, _request: web.Request) -> web.Response:
        status = 200 if self.state == "ready" else 503
        return web.json_response({"pod": self.name, "state": self.state}, status=status, headers=self._headers())

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((request.method, request.raw_path, request.headers))
        if self.state == "draining":
            return self._error(503, "draining", {"x-convoy-reason": "draining"})
        if request.method != "POST":
            return web.json_response({"pod": self.name, "path": request.raw_path}, headers=self._headers())
        if self.behaviour == "hang":
            await asyncio.Event().wait()
        if self.behaviour == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if self.behaviour != "answer":
            return self._error(int(self.behaviour), "queue_full" if self.behaviour == "429" else "engine_error", {"retry-after": "7"})
        if request.headers.get("x-test-stream") or _wants_stream(body):
            return await self._stream(request)
        return web.json_response({"pod": self.name, "bytes": len(body)}, headers=self._headers())

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={**self._headers(), "content-type": "text/event-stream"})
        await response.prepare(request)
        for number in range(self.chunks):
            if number == self.chunks - 1:
                await self.pause.wait()
            await response.write(f"data: {self.name} {number}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    def _error(self, status: int, code: str, headers: Mapping[str, str]) -> web.Response:
        body = {"error": {"message": code, "type": "server_error", "param": None, "code": code}}
        return web.json_response(body, status=status, headers={**self._headers(), **headers})

    def _headers(self) -> dict[str, str]:
        return {"x-convoy-pod": self.name}


def _wants_stream(body: bytes) -> bool:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and fields.get("stream") is True
