"""Clients of a stack whose Envoy is replaced: long streams and steady traffic, and the words that replace it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import aiohttp

from services.ops.state import StateDir

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.ops.envoy_record import EnvoyRecord
    from tests.stack.convoy import Convoy

DONE = b"data: [DONE]\n\n"
TOKENS_PER_SECOND = 20


def record(running: Convoy) -> EnvoyRecord:
    """Which Envoys there are."""
    return StateDir(running.state_dir).envoy()


def url(running: Convoy) -> str:
    """Where clients ask."""
    told: str = json.loads((running.state_dir / "run.json").read_text())["url"]
    return told + "/v1/chat/completions"


def question(tokens: int, *, is_stream: bool) -> dict[str, Any]:
    """A request of so many tokens."""
    return {"messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens, "ignore_eos": True, "stream": is_stream}


class Stream:
    """A stream that has begun when this is entered; `broke` says that its connection ended before its end."""

    def __init__(self, running: Convoy, seconds: float) -> None:
        """A stream of so many seconds; it begins when entered."""
        self._url, self._tokens = url(running), int(seconds * TOKENS_PER_SECOND)
        self.broke = False

    async def __aenter__(self) -> Stream:  # noqa: PYI034 - `Self` is not in Python 3.10
        self._session = aiohttp.ClientSession()
        self._answer = await self._session.post(self._url, json=question(self._tokens, is_stream=True))
        self._first = await self._answer.content.readline()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def read(self) -> bytes:
        """The rest, to the end."""
        came = self._first
        try:
            async for piece in self._answer.content.iter_any():
                came += piece
        except aiohttp.ClientError:
            self.broke = True
        return came


async def restarted(running: Convoy) -> str:
    """Types `convoy restart envoy`, demands that it goes well; what it printed."""
    done = await asyncio.to_thread(running.run, "restart", "envoy")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@contextlib.asynccontextmanager
async def traffic(running: Convoy) -> AsyncIterator[list[str]]:
    """Clients that ask without a pause, half of them on new connections; each request's outcome: empty, or what went wrong."""
    outcomes: list[str] = []
    stop = asyncio.Event()

    async def ask(session: aiohttp.ClientSession) -> str:
        try:
            async with session.post(url(running), json=question(1, is_stream=False)) as answer:
                text = await answer.text()
                return "" if answer.status == 200 else f"{answer.status} {text}"
        except aiohttp.ClientError as error:
            return repr(error)

    async def client(*, keeps: bool) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=not keeps)) as session:
            while not stop.is_set():
                outcomes.append(await ask(session))

    clients = [asyncio.create_task(client(keeps=number % 2 == 0)) for number in range(6)]
    try:
        yield outcomes
    finally:
        stop.set()
        await asyncio.gather(*clients)


async def is_true(value: object) -> bool:
    """For `until`, which waits for coroutines."""
    return bool(value)
