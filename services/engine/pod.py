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
from services.engine.connections import PodProtocol, all_answered, end_slow_readers
from services.engine.ending import Will
from services.engine.keys import ADMISSION, HEALTH, METRICS, RUNS, WILL, Pod
from services.openai.errors import Draining, EngineError
from services.telemetry.logging import configure, get_logger

if TYPE_CHECKING:
    import socket

    from services.settings import EngineSettings

log = get_logger()

_BEAT_SECONDS = 1.0
# Above what Envoy lets through (32 KiB with all it adds): what is too large is for the edge to say.
_MAX_HEAD_BYTES = 64 * 1024
# Connections that wait to be taken: all requests of a pod that died come at once. A full list makes each of them wait a second for the
# kernel's second try, which is as long as Envoy waits at all.
_BACKLOG = 4096
# How long a draining pod waits to be asked for its readiness; the edge asks several times a second.
_NOTICE_SECONDS = 2.0
# Time for the edge to write, and Envoy to take in, that the pod is draining.
_SETTLE_SECONDS = 0.5
# Time for the last answers, which are errors, to leave.
_FAREWELL_SECONDS = 1.0


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
    will = Will()
    app = create_app(Pod(name, model_id(settings), int(time.time()), settings), create_generator(settings, name), will)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, will.drain)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    assert runner.server is not None
    sizes = {"max_line_size": _MAX_HEAD_BYTES, "max_field_size": _MAX_HEAD_BYTES}
    server = await loop.create_server(
        lambda: PodProtocol(runner.server, loop=loop, access_log=None, **sizes),  # type: ignore[arg-type] # aiohttp's own options
        sock=listener,
        backlog=_BACKLOG,
    )
    log.info("pod.listening", port=listener.getsockname()[1], pid=os.getpid())
    slow = end_slow_readers(runner.server, settings.slow_client_timeout_seconds, app[METRICS])
    tasks = [asyncio.create_task(heart.beat(app)), asyncio.create_task(slow)]
    await will.told()
    if will.ending is None:
        await _drain(app, runner.server, settings.drain_timeout_seconds)
    await _stop(app, runner.server, heart)
    for task in tasks:
        task.cancel()
    server.close()
    await runner.cleanup()
    ending = will.ending
    log.info("pod.stopped", exit_code=ending.code if ending else 0)
    return ending.code if ending else 0


async def _drain(app: web.Application, server: web.Server, timeout_seconds: float) -> None:
    """Serves until Envoy sends nothing more, then refuses, and lets what runs finish, to its last byte.

    Refusing at once would lose requests where several pods stop together: the one retry could meet another of them. Further signals
    change nothing: a process group may get the same one twice.
    """
    app[HEALTH].become("draining")
    log.info("pod.draining", running=app[ADMISSION].running)
    waits = {asyncio.create_task(_finished(app, server)), asyncio.create_task(app[WILL].ended())}
    done, late = await asyncio.wait(waits, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in late:
        task.cancel()
    if not done:
        log.warning("pod.drain_cut", running=app[ADMISSION].running, drain_timeout_seconds=timeout_seconds)
        message = f"This pod stops, and the answer was not whole within DRAIN_TIMEOUT_SECONDS={timeout_seconds:g}"
        app[RUNS].end_all(Draining(message, retry_after_seconds=1))


async def _finished(app: web.Application, server: web.Server) -> None:
    if not app[HEALTH].refuses:
        with suppress(asyncio.TimeoutError):  # nobody asks: no edge in front, or one that is down
            await asyncio.wait_for(app[HEALTH].told_draining.wait(), _NOTICE_SECONDS)
            await asyncio.sleep(_SETTLE_SECONDS)
    app[HEALTH].refuse()
    app[ADMISSION].drain()
    await app[RUNS].idle()
    await all_answered(server)


async def _stop(app: web.Application, server: web.Server, heart: Heart) -> None:
    """Tells whoever is still here that the pod ends, and why."""
    ending = app[WILL].ending
    app[HEALTH].become("stopped", ending.reason if ending else "")
    app[ADMISSION].drain()
    if ending is not None:
        heart.say(f"{ending.word} {ending.reason}")
        log.error("pod.ended", reason=ending.reason, exit_code=ending.code)
        app[RUNS].end_all(EngineError(f"The engine broke: {ending.reason}"))
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(all_answered(server), _FAREWELL_SECONDS)


def model_id(settings: EngineSettings) -> str:
    """The id under which a model is served: its Hugging Face id, the last part of its path, or what the upstream calls it."""
    name = settings.model_name
    return Path(name).name if settings.engine != "remote" and Path(name).is_dir() else name
