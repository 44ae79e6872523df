"""One pod: its event loop, its life from listening to the last answer, its exit code.

It listens before the model is loaded, and after SIGTERM until the edge has learnt of it and what runs has finished.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop
from aiohttp import web

from services.engine.app import create_app
from services.engine.backends import create_generator
from services.engine.keys import ADMISSION, HEALTH, RUNS, Pod
from services.engine.middleware import PodProtocol
from services.telemetry.logging import configure, get_logger

if TYPE_CHECKING:
    import socket

    from services.settings import EngineSettings

log = get_logger()

EXIT_LOAD_FAILED = 1
_BEAT_SECONDS = 1.0
# Above what Envoy lets through (32 KiB with all it adds): what is too large is for the edge to say.
_MAX_HEAD_BYTES = 64 * 1024
# How long a draining pod waits to be asked for its readiness; the edge asks several times a second.
_NOTICE_SECONDS = 2.0
# Time for the edge to write, and Envoy to take in, that the pod is draining.
_SETTLE_SECONDS = 0.5


class Heart:
    """Tells the runner, one line a second, that the event loop turns and what state the pod is in."""

    def __init__(self, pipe: int | None) -> None:
        """`pipe`: a file descriptor of the runner's, or None without one."""
        self._pipe = pipe

    def say(self, line: str) -> None:
        """Writes a line; a runner that is gone or slow is no reason to stop."""
        if self._pipe is not None:
            with suppress(OSError):
                os.write(self._pipe, line.replace("\n", " ").encode() + b"\n")

    async def beat(self, app: web.Application) -> None:
        """Beats for ever."""
        while True:
            self.say(app[HEALTH].state)
            await asyncio.sleep(_BEAT_SECONDS)


def run_pod(settings: EngineSettings, name: str, listener: socket.socket, pipe: int | None) -> int:
    """Serves on `listener` until told to stop; the exit code."""
    configure(settings.log_level, settings.log_format, name)
    # Nearly all garbage of a request goes without the collector; looking for the rest after every 700 objects is 2 % of the work.
    gc.set_threshold(10_000, 20, 20)
    if pipe is not None:
        os.set_blocking(pipe, False)
    return uvloop.run(_serve(settings, name, listener, Heart(pipe)))


async def _serve(settings: EngineSettings, name: str, listener: socket.socket, heart: Heart) -> int:
    stop, failure = asyncio.Event(), ""

    def load_failed(reason: str) -> None:
        nonlocal failure
        failure = reason
        stop.set()

    app = create_app(Pod(name, model_id(settings.model_name), int(time.time()), settings), create_generator(settings, name), load_failed)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    sizes = {"max_line_size": _MAX_HEAD_BYTES, "max_field_size": _MAX_HEAD_BYTES}
    server = await loop.create_server(
        lambda: PodProtocol(runner.server, loop=loop, access_log=None, **sizes),  # type: ignore[arg-type] # aiohttp's own options
        sock=listener,
    )
    log.info("pod.listening", port=listener.getsockname()[1], pid=os.getpid())
    heartbeat = asyncio.create_task(heart.beat(app))
    await stop.wait()
    if failure:
        heart.say("failed " + failure)
        log.error("pod.load_failed", reason=failure)
    else:
        await _drain(app, settings.drain_timeout_seconds)
    heartbeat.cancel()
    server.close()
    await runner.cleanup()
    log.info("pod.stopped", failed=bool(failure))
    return EXIT_LOAD_FAILED if failure else 0


async def _drain(app: web.Application, timeout_seconds: float) -> None:
    """Serves until Envoy sends nothing more, then refuses, and lets what runs finish.

    Refusing at once would lose requests where several pods stop together: the one retry could meet another of them. Further signals
    change nothing: a process group may get the same one twice.
    """
    app[HEALTH].become_draining()
    log.info("pod.draining", running=app[ADMISSION].running)
    try:
        await asyncio.wait_for(_finished(app), timeout_seconds)
    except asyncio.TimeoutError:
        log.warning("pod.drain_cut", running=app[ADMISSION].running, drain_timeout_seconds=timeout_seconds)


async def _finished(app: web.Application) -> None:
    with suppress(asyncio.TimeoutError):  # nobody asks: no edge in front, or one that is down
        await asyncio.wait_for(app[HEALTH].told_draining.wait(), _NOTICE_SECONDS)
        await asyncio.sleep(_SETTLE_SECONDS)
    app[HEALTH].refuse()
    app[ADMISSION].drain()
    await app[RUNS].idle()


def model_id(model_name: str) -> str:
    """The id under which a model is served: its Hugging Face id, or the last part of its path."""
    return Path(model_name).name if Path(model_name).is_dir() else model_name
