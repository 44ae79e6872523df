"""The floor: a bare aiohttp handler that sends the bytes it was given: `python -m bench.bare FILE CHUNKS PER_SECOND`."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import uvloop
from aiohttp import web


async def serve(payload: bytes, chunks: int, per_second: float) -> None:
    """One answer for all; with several chunks a stream of events in the pace of the engine that it is compared with."""
    frames = payload.split(b"\n\n")[:-1] if chunks else []

    async def whole(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=payload, content_type="application/json")

    async def stream(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for frame in frames:
            await asyncio.sleep(1 / per_second)
            await response.write(frame + b"\n\n")
        await response.write_eof()
        return response

    app = web.Application(client_max_size=8 << 20)
    app.add_routes([web.post("/v1/chat/completions", stream if chunks else whole)])
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    print(f"serving http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]).read_bytes(), int(sys.argv[2]), float(sys.argv[3])))
