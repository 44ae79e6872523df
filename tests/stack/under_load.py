"""Steady load on a whole stack while something is done to it: 20 requests a second, every other one a stream, counted by the client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING

import aiohttp

from tests.drills.load import Asking, show, told
from tests.stack.convoy import until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Callable

    from tests.drills.load import Answer
    from tests.stack.convoy import Convoy

PER_SECOND = 20.0


def url(running: Convoy) -> str:
    """Where clients ask."""
    told: str = json.loads((running.state_dir / "run.json").read_text())["url"]
    return told


@contextlib.asynccontextmanager
async def load(running: Convoy, tokens: int = 100) -> AsyncIterator[list[Answer]]:
    """Asks in an open loop for as long as it is entered; at its end the list holds every answer, and all of them must be whole."""
    answers: list[Answer] = []
    stop = asyncio.Event()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        asking = Asking(session, url(running), tokens=tokens)

        async def ask_on() -> None:
            asked: list[asyncio.Task[Answer]] = []
            begun = time.monotonic()
            while not stop.is_set():
                await asyncio.sleep(max(0.0, begun + len(asked) / PER_SECOND - time.monotonic()))
                asked.append(asyncio.create_task(asking.ask(is_stream=bool(len(asked) % 2))))
            answers.extend(await asyncio.gather(*asked))

        task = asyncio.create_task(ask_on())
        try:
            yield answers
        finally:
            stop.set()
            await task
    show(told(answers))
    assert [answer for answer in answers if not answer.is_whole] == [], told(answers)


async def typed(running: Convoy, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Types a command beside the load."""
    return await asyncio.to_thread(running.run, *words, **settings)


async def until_beside(condition: Callable[[], object], what: Callable[[], str]) -> None:
    """Waits without holding up the load."""
    await asyncio.to_thread(until, condition, what)


async def model_of(running: Convoy) -> str:
    """The served model, asked through Envoy."""
    async with aiohttp.ClientSession() as session, session.get(f"{url(running)}/v1/models") as response:
        model: str = (await response.json())["data"][0]["id"]
        return model
