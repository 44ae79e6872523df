"""`x-request-deadline-ms` in a pod: wherever the request is when its time is over, it is told so and its work ends."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request

from services.engine.deadlines import deadline_of
from services.engine.exchange import Exchange
from tests.contract.asking import CHAT, body, metric, read_all, unread, until_metric
from tests.running import running_pods, until

if TYPE_CHECKING:
    from tests.running import RunningPods

FREE_SECONDS = 0.5
"""What is promised for the slot after a deadline; tests allow three times as much."""
FAILED = rf'llm_requests_total\{{endpoint="{CHAT}",model="demo",status="5xx"\}}'
ENDLESS = {"max_tokens": 3000, "ignore_eos": True}
PAST = {"x-convoy-deadline": "1000", "x-envoy-attempt-count": "2"}


def within(milliseconds: object) -> dict[str, str]:
    """The header."""
    return {"x-request-deadline-ms": str(milliseconds)}


def assert_passed(status: int, answer: dict[str, Any], milliseconds: int) -> None:
    """504 that names the deadline."""
    message = f"The deadline of {milliseconds} ms passed"
    assert status == 504
    assert answer == {"error": {"message": message, "type": "server_error", "param": None, "code": "deadline_exceeded"}}


async def until_free(session: aiohttp.ClientSession, url: str) -> None:
    """Waits as long as three times what is promised for the slots to be free."""
    deadline = time.monotonic() + 3 * FREE_SECONDS
    while await metric(session, url, "llm_slots_in_use"):
        assert time.monotonic() < deadline, "the slot is still taken"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("value", ["0", "000", "-5", "+5", "5.5", "1e3", "abc", "", "5, 7", "٣"])
async def test_a_deadline_that_is_none_is_refused(fake: RunningPods, value: str) -> None:
    """The message names the header and what is allowed."""
    async with (
        aiohttp.ClientSession(fake.url) as session,
        session.post(CHAT, json=body(stream=False), headers=within(value)) as response,
    ):
        error = (await response.json())["error"]
    assert (response.status, error["code"], error["param"]) == (400, "invalid_value", "x-request-deadline-ms")
    assert error["message"].startswith("x-request-deadline-ms must be a whole number of milliseconds, at least 1, got ")


@pytest.mark.parametrize(("value", "seconds"), [("20000", 20.0), ("0020000", 20.0), ("600001", 600.0), ("9" * 5000, 600.0)])
def test_a_deadline_is_capped(value: str, seconds: float) -> None:
    """What is beyond REQUEST_TIMEOUT_SECONDS is that."""
    request = make_mocked_request("POST", CHAT, headers=within(value))
    exchange = Exchange(request, "engine-1", None)
    deadline = deadline_of(request.headers, exchange, 600)
    assert deadline
    assert deadline.at == exchange.arrived_at + seconds


async def test_a_deadline_that_is_kept_changes_nothing(fake: RunningPods) -> None:
    """JSON and stream are whole."""
    async with aiohttp.ClientSession(fake.url) as session:
        async with session.post(CHAT, json=body(stream=False), headers=within(60_000)) as response:
            assert (response.status, (await response.json())["usage"]["completion_tokens"]) == (200, 20)
        async with session.post(CHAT, json=body(), headers=within(60_000)) as response:
            assert (await response.read()).endswith(b"data: [DONE]\n\n")


async def test_a_running_answer_is_cancelled(pod: RunningPods) -> None:
    """JSON that takes longer is 504, its slot is free, and nobody says that the engine broke."""
    async with aiohttp.ClientSession(pod.url) as session:
        before = await metric(session, pod.url, FAILED)
        start = time.monotonic()
        async with session.post(CHAT, json=body(**ENDLESS, stream=False), headers=within(300)) as response:
            answer = await response.json()
        assert time.monotonic() - start >= 0.29
        assert_passed(response.status, answer, 300)
        assert "total;dur=" in response.headers["Server-Timing"]
        await until_free(session, pod.url)
        await until_metric(session, pod.url, "llm_batch_size", 0)
        assert await metric(session, pod.url, FAILED) == before + 1
        assert await metric(session, pod.url, "llm_engine_errors_total") == 0


async def test_a_stream_without_a_byte_is_a_true_504() -> None:
    """No header has left, so the status can tell."""
    with running_pods(1, fake_first_token_ms=60_000) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            async with session.post(CHAT, json=body(), headers=within(200)) as response:
                assert_passed(response.status, await response.json(), 200)
            await until_free(session, pods.url)


@pytest.mark.parametrize("settings", [{}, {"fake_first_token_ms": 60_000, "keepalive_seconds": 0.2, "queue_timeout_seconds": 0.1}])
async def test_a_stream_under_way_ends_with_an_error_event(settings: dict[str, object]) -> None:
    """After tokens, or only comments, the last event is the error, no [DONE] follows, and the record and the slot know."""
    with running_pods(1, **({"fake_tokens_per_second": 50} | settings)) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            async with session.post(CHAT, json=body(**ENDLESS), headers=within(800)) as response:
                raw = (await response.read()).decode()
            assert response.status == 200
            assert "[DONE]" not in raw
            assert_passed(504, json.loads(raw.strip().rpartition("data: ")[2]), 800)
            await until_free(session, pods.url)
        until(lambda: '"request.done"' in pods.log(), pods.log)
        record = next(json.loads(line) for line in pods.log().splitlines() if '"request.done"' in line)
        assert (record["status"], record["error"]) == (200, "deadline_exceeded")


async def test_a_client_that_does_not_read_keeps_no_slot() -> None:
    """The generation ends though the connection is full; who reads later finds the error behind the text."""
    with running_pods(1, max_model_len=10_000_000, fake_tokens_per_second=1e6) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            slow = unread(pods.url, "x-request-deadline-ms: 3000", max_tokens=9_000_000, ignore_eos=True)
            await until_metric(session, pods.url, "llm_slots_in_use", 1)
            await until_metric(session, pods.url, "llm_slots_in_use", 0)
            assert await metric(session, pods.url, "llm_requests_in_progress") == 1
            raw = await asyncio.to_thread(read_all, slow)
    assert b"The deadline of 3000 ms passed" in raw[-500:]
    assert b"[DONE]" not in raw


async def test_a_request_that_waits_leaves_the_queue() -> None:
    """504 where nobody could know how long it would wait; its place is free at once, and the running request is not touched."""
    with running_pods(1, max_concurrent_requests=1, queue_capacity=1, fake_first_token_ms=60_000) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            running = asyncio.create_task(session.post(CHAT, json=body(**ENDLESS)))
            await until_metric(session, pods.url, "llm_slots_in_use", 1)
            for stream in (True, False):  # the second one finds the place free
                async with session.post(CHAT, json=body(stream=stream), headers=within(300)) as response:
                    assert_passed(response.status, await response.json(), 300)
                assert await metric(session, pods.url, "llm_queue_depth") == 0
            assert await metric(session, pods.url, "llm_slots_in_use") == 1
            running.cancel()


async def test_a_deadline_that_cannot_be_met_is_told_at_once() -> None:
    """The running request has 39 s to go, which is known: nobody waits in vain, and is told when to come back."""
    with running_pods(1, max_concurrent_requests=1, fake_tokens_per_second=100) as pods:
        async with aiohttp.ClientSession(pods.url) as session, session.post(CHAT, json=body(**ENDLESS)) as running:
            for _ in range(8):  # the role, and tokens enough to know their pace
                await running.content.readuntil(b"\n\n")
            async with session.post(CHAT, json=body(stream=False), headers=within(3000)) as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"]) == (429, "deadline_unreachable"), error
                assert 20 <= int(response.headers["retry-after"]) <= 60
                assert float(response.headers["retry-after-ms"]) > 20_000


def test_a_body_that_does_not_come_is_waited_for_until_the_deadline(fake: RunningPods) -> None:
    """The deadline counts from the headers on."""
    host, port = fake.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: pod\r\nContent-Length: 100\r\nx-request-deadline-ms: 200\r\n\r\n{{".encode(),
        )
        answer = b""
        while b"passed" not in answer:
            answer += connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 504 ")


async def test_a_retry_shares_the_deadline(fake: RunningPods) -> None:
    """At a later attempt the edge's own deadline counts if it is nearer; at the first one it does not matter."""
    async with aiohttp.ClientSession(fake.url) as session:
        async with session.post(CHAT, json=body(stream=False), headers=within(60_000) | PAST) as response:
            assert_passed(response.status, await response.json(), 60_000)
        for attempt, end in [("1", "1000"), ("2", f"{(time.time() + 60) * 1000:.0f}")]:
            headers = within(60_000) | {"x-convoy-deadline": end, "x-envoy-attempt-count": attempt}
            async with session.post(CHAT, json=body(stream=False), headers=headers) as response:
                assert response.status == 200
        near = {"x-convoy-deadline": f"{(time.time() + 0.3) * 1000:.0f}", "x-envoy-attempt-count": "2"}
        async with session.post(CHAT, json=body(**ENDLESS, stream=False), headers=within(60_000) | near) as response:
            assert response.status == 504


@pytest.mark.parametrize("jumped_seconds", [-3600, 3600])
async def test_a_clock_that_jumps_changes_no_deadline(fake: RunningPods, jumped_seconds: int) -> None:
    """Between two attempts: what Envoy says is left holds; where it cannot know, the jump counts for no more than one attempt may take."""
    end = f"{(time.time() + 2 + jumped_seconds) * 1000:.0f}"
    second = within(60_000) | {"x-convoy-deadline": end, "x-envoy-attempt-count": "2"}
    async with aiohttp.ClientSession(fake.url) as session:
        begun = time.monotonic()
        headers = second | {"x-envoy-expected-rq-timeout-ms": "1500"}
        async with session.post(CHAT, json=body(**ENDLESS, stream=False), headers=headers) as response:
            assert_passed(response.status, await response.json(), 60_000)
        assert 1 <= time.monotonic() - begun < 1 + 3 * FREE_SECONDS
        headers = second | {"x-envoy-expected-rq-timeout-ms": "20000"}  # FIRST_TOKEN_TIMEOUT_SECONDS
        async with session.post(CHAT, json=body(stream=False), headers=headers) as response:
            assert response.status == 200


async def test_a_mistake_of_the_edge_is_logged_and_costs_no_request() -> None:
    """Without the edge's deadline a retry has the whole time."""
    with running_pods(1) as pods:
        headers = within(60_000) | PAST | {"x-convoy-deadline": "soon"}
        async with aiohttp.ClientSession(pods.url) as session, session.post(CHAT, json=body(stream=False), headers=headers) as response:
            assert response.status == 200
        until(lambda: "deadline.bad_edge_header" in pods.log(), pods.log)
