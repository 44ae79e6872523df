from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from services.openai.chunks import DONE
from services.ops.load.arrivals import poisson, steady
from services.ops.load.client import run_load
from services.ops.load.kinds import chat, completion
from tests.stack.harness import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.ops.load.kinds import Kind
    from services.ops.load.outcome import Outcome

TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"hello "},"finish_reason":null}]}\n\n'
HEADERS = {"x-convoy-attempts": "2", "x-convoy-pod": "engine-1", "x-convoy-queue": "place=3, wait=20ms", "x-request-id": "r"}


class Server:
    """Does what a request's prompt says; counts what it saw."""

    def __init__(self) -> None:
        """Nothing has been asked."""
        self.url = ""
        self.begun_at: list[float] = []
        self.open = self.most_open = self.left = 0
        self.keys = set[str | None]()
        self.may_answer = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        body = await request.json()
        self.begun_at.append(time.monotonic())
        self.keys.add(request.headers.get("authorization"))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            return await self.answer(
                request, body["messages"][0]["content"] if "messages" in body else body["prompt"], is_stream=body["stream"]
            )
        except (asyncio.CancelledError, ConnectionError):
            self.left += 1
            raise
        finally:
            self.open -= 1

    async def answer(self, request: web.Request, wanted: str, *, is_stream: bool) -> web.StreamResponse:
        """Whole, refused, cut, broken or never."""
        if wanted == "refuse":
            error = {"error": {"message": "full", "type": "rate_limit_error", "param": None, "code": "queue_full"}}
            return web.json_response(error, status=429, headers={"retry-after": "7"})
        if wanted == "wait":
            await self.may_answer.wait()
        if not is_stream:
            return web.json_response({"choices": [{"index": 0}], "usage": {"completion_tokens": 20}}, headers=HEADERS)
        response = web.StreamResponse(headers=HEADERS)
        await response.prepare(request)
        await response.write(TEXT)
        await asyncio.sleep(0.05)
        await response.write(TEXT)
        if wanted == "endless":
            await asyncio.Event().wait()
        if wanted == "break":
            assert request.transport
            request.transport.abort()
        if wanted != "cut":
            await response.write(DONE)
        return response


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[Server]:
    """A server on a port of its own."""
    asked = Server()
    app = web.Application()
    app.router.add_post("/{path:.*}", asked.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    asked.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield asked
    finally:
        await runner.cleanup()


async def one(kind: Kind, time_limit: float = 30) -> Outcome:
    """What becomes of a single request of this kind."""
    async with server() as asked:
        (outcome,) = await run_load(asked.url, [kind], [steady(1, 1)], time_limit=time_limit)
    return outcome


async def test_a_json_answer_is_told_in_full() -> None:
    """Status, tokens, and what the answer says of itself."""
    outcome = await one(completion())
    assert (outcome.result, outcome.is_whole, outcome.tokens, outcome.kind) == ("200", True, 20, "completion json")
    assert (outcome.attempts, outcome.pod, outcome.queue, outcome.request_id) == (2, "engine-1", "place=3, wait=20ms", "r")
    assert outcome.ttft is None
    assert outcome.first_byte
    assert 0 <= outcome.intended <= outcome.sent <= outcome.first_byte <= outcome.ended


async def test_a_stream_tells_first_token_and_gaps() -> None:
    """Two texts 50 ms apart are one gap."""
    outcome = await one(chat(is_stream=True))
    assert (outcome.result, outcome.is_whole, outcome.tokens) == ("200", True, 2)
    assert outcome.ttft
    assert 0 < outcome.ttft <= outcome.latency - 0.04
    assert len(outcome.gaps) == 1
    assert outcome.longest_gap == outcome.gaps[0] >= 0.04


@pytest.mark.parametrize(
    ("wanted", "result", "tokens"), [("refuse", "429 queue_full", 0), ("cut", "200 cut_off", 2), ("break", "0 connection_broken", 2)]
)
async def test_what_is_not_whole_is_no_answer(wanted: str, result: str, tokens: int) -> None:
    """A refusal, a stream without its end, a broken connection."""
    outcome = await one(chat(is_stream=True, prompts=(wanted,)))
    assert (outcome.result, outcome.is_whole, outcome.has_left, outcome.tokens) == (result, False, False, tokens)
    assert outcome.retry_after == (7 if wanted == "refuse" else None)


async def test_nobody_there_and_no_patience_left_are_told_apart() -> None:
    """Both have status 0."""
    (port,) = free_ports(1)
    (refused,) = await run_load(f"http://127.0.0.1:{port}", [chat()], [steady(1, 1)])
    waited = await one(chat(prompts=("wait",)), time_limit=0.3)
    assert (refused.result, waited.result) == ("0 connect_failed", "0 client_timeout")


@pytest.mark.parametrize("leave", [{"leave_after_tokens": 2}, {"leave_after_seconds": 0.5}])
async def test_a_client_that_leaves_is_seen_by_the_server(leave: dict[str, Any]) -> None:
    """It closes its connection in the middle, and is neither answered nor failed."""
    async with server() as asked:
        kind = chat(is_stream=True, prompts=("endless",), **leave)
        (outcome,) = await run_load(asked.url, [kind], [steady(1, 1)])
        assert (outcome.result, outcome.is_whole, outcome.tokens) == ("left", False, 2)
        end = time.monotonic() + 30
        while not asked.left:
            assert time.monotonic() < end, "the server never saw that the client left"
            await asyncio.sleep(0.01)


async def test_it_asks_on_though_nothing_is_answered() -> None:
    """An open loop: 200 requests are open at once before the first is answered; the wait counts for each from when it was due."""
    async with server() as asked:
        load = asyncio.create_task(
            run_load(asked.url, [chat(prompts=("wait",))], [poisson(400, 0.5)], seed=3, headers={"authorization": "Bearer k"})
        )
        end = time.monotonic() + 30
        while asked.open < 150:
            assert time.monotonic() < end, f"{asked.open} requests are open"
            await asyncio.sleep(0.01)
        asked.may_answer.set()
        outcomes = await load
    assert len(outcomes) == len(asked.begun_at)
    assert asked.keys == {"Bearer k"}
    assert all(outcome.is_whole for outcome in outcomes)
    assert [outcome.intended for outcome in outcomes] == sorted(outcome.intended for outcome in outcomes)
    assert max(outcome.latency for outcome in outcomes) >= 0.3
    assert all(outcome.sent >= outcome.intended for outcome in outcomes)


async def test_cancelling_a_load_closes_what_is_open() -> None:
    """Nothing goes on behind the caller's back."""
    async with server() as asked:
        load = asyncio.create_task(run_load(asked.url, [chat(prompts=(json.dumps("wait"), "wait"))], [steady(50, 60)]))
        end = time.monotonic() + 30
        while asked.open < 5:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load
        while asked.open:
            assert time.monotonic() < end, f"{asked.open} requests are still open"
            await asyncio.sleep(0.01)
