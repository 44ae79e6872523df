"""A stream's raw bytes and headers, and what happens to it when client or engine fail."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.contract.asking import CHAT, body, metric, read_all, unread, until_metric
from tests.running import running_pods

if TYPE_CHECKING:
    from tests.running import RunningPods


async def test_frames_headers_and_order(pod: RunningPods) -> None:
    """Events are framed by an empty line, in OpenAI's order; times come in the headers and in a comment before [DONE]."""
    async with aiohttp.ClientSession(pod.url) as session:
        headers = {"x-request-id": "my-request-1"}
        async with session.post(CHAT, json=body(stream_options={"include_usage": True}), headers=headers) as response:
            raw = (await response.read()).decode()
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert response.headers["x-request-id"] == "my-request-1"
    assert response.headers["x-convoy-pod"] == "engine-1"
    assert int(response.headers["x-convoy-seed"]) >= 0
    # An engine may be done by the time that the first token leaves.
    assert re.fullmatch(r"queue;dur=[\d.]+, prefill;dur=[\d.]+(, decode;dur=[\d.]+, total;dur=[\d.]+)?", response.headers["Server-Timing"])
    *frames, rest = raw.split("\n\n")
    assert rest == ""
    assert frames[-1] == "data: [DONE]"
    assert re.fullmatch(r": server-timing queue;dur=[\d.]+, prefill;dur=[\d.]+, decode;dur=[\d.]+, total;dur=[\d.]+", frames[-2])
    events = [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert events[-2]["choices"][0]["finish_reason"] in {"length", "stop"}
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] >= 1


async def test_characters_are_never_cut(fake: RunningPods) -> None:
    """Characters of two to four bytes come whole, though tokens cut them: no chunk holds a replacement character."""
    async with aiohttp.ClientSession(fake.url) as session, session.post(CHAT, json=body(max_tokens=60)) as response:
        raw = (await response.read()).decode()
    assert "\ufffd" not in raw
    deltas = re.findall(r'"content":"([^"]*)"', raw)
    assert "🚚" in "".join(deltas)
    assert "漢字" in "".join(deltas)


async def test_a_client_that_leaves_frees_its_slot(pod: RunningPods) -> None:
    """Slot and engine row are free at once when a client closes its stream or gives up on its JSON answer."""
    endless = {"max_tokens": 3000, "ignore_eos": True}
    async with aiohttp.ClientSession(pod.url) as session:
        async with session.post(CHAT, json=body(**endless)) as response:
            await response.content.readline()
            assert await metric(session, pod.url, "llm_slots_in_use") == 1
        await until_metric(session, pod.url, "llm_slots_in_use", 0)
        waiting = asyncio.create_task(session.post(CHAT, json=body(**endless, stream=False)))
        await until_metric(session, pod.url, "llm_slots_in_use", 1)
        waiting.cancel()
        await until_metric(session, pod.url, "llm_slots_in_use", 0)
        await until_metric(session, pod.url, "llm_requests_in_progress", 0)


async def test_a_slow_reader_delays_nobody() -> None:
    """A client that does not read keeps neither its slot nor anybody else's tokens, and finds its text whole when it reads."""
    wanted = {"max_tokens": 1_000_000, "ignore_eos": True}
    settings = {"max_concurrent_requests": 1, "queue_capacity": 0, "max_model_len": 2_000_000, "fake_tokens_per_second": 1e6}
    with running_pods(1, **settings) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            slow = unread(pods.url, **wanted)
            await until_metric(session, pods.url, "llm_generation_tokens_total", 1_000_000)
            # The engine is done, the answer is not: what the client does not take fits into no buffer on the way.
            assert await metric(session, pods.url, "llm_slots_in_use") == 0
            assert await metric(session, pods.url, "llm_requests_in_progress") == 1
            async with session.post(CHAT, json=body(stream=False)) as quick:
                assert quick.status == 200
            assert await metric(session, pods.url, "llm_requests_in_progress") == 1
            raw = await asyncio.to_thread(read_all, slow)
            async with session.post(CHAT, json=body(**wanted, stream=False)) as response:
                whole = (await response.json())["choices"][0]["message"]["content"]
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in raw.split(b"\n") if line.startswith(b"data: {")]
    assert "".join(delta.get("content", "") for delta in deltas) == whole
    assert b"data: [DONE]\n\n" in raw


async def test_requests_beyond_the_slots_wait_and_then_run() -> None:
    """With one slot and two places, three requests are answered one after the other and the fourth is 429 with Retry-After."""
    with running_pods(1, max_concurrent_requests=1, queue_capacity=2, fake_tokens_per_second=20) as pods:
        async with aiohttp.ClientSession(pods.url) as session:

            async def ask() -> tuple[int, dict[str, str], dict[str, Any]]:
                async with session.post(CHAT, json=body(stream=False)) as response:
                    return response.status, dict(response.headers), await response.json()

            first = asyncio.create_task(ask())
            await until_metric(session, pods.url, "llm_slots_in_use", 1)
            others = [asyncio.create_task(ask()) for _ in range(2)]
            await until_metric(session, pods.url, "llm_queue_depth", 2)
            status, headers, answer = await ask()
            assert (status, answer["error"]["code"]) == (429, "queue_full")
            assert int(headers["Retry-After"]) >= 1
            assert [task[0] for task in await asyncio.gather(first, *others)] == [200] * 3
            places = [task.result()[1]["x-convoy-queue"].partition(",")[0] for task in others]
            assert sorted(places) == ["place=1", "place=2"]


async def test_an_engine_that_breaks_before_the_first_token_is_a_true_500() -> None:
    """JSON and stream alike get status 500 with the error body, since no header was sent."""
    with running_pods(1, fake_failure="error") as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            for stream in (True, False):
                async with session.post(CHAT, json=body(stream=stream)) as response:
                    assert (response.status, (await response.json())["error"]["code"]) == (500, "engine_error")
            assert await metric(session, pods.url, "llm_engine_errors_total") == 2


async def test_an_engine_that_breaks_later_ends_the_stream_with_an_error_event() -> None:
    """After the first token the last event is the error, and no [DONE] follows."""
    with running_pods(1, fake_failure="error_after_first_token") as pods:
        async with aiohttp.ClientSession(pods.url) as session, session.post(CHAT, json=body()) as response:
            raw = (await response.read()).decode()
    assert response.status == 200
    assert json.loads(raw.strip().rpartition("data: ")[2])["error"]["code"] == "engine_error"
    assert "[DONE]" not in raw


async def test_a_silent_stream_is_kept_alive() -> None:
    """Before the first token, after KEEPALIVE_SECONDS of silence, headers and comments come, then the answer."""
    with running_pods(1, fake_first_token_ms=700, keepalive_seconds=0.2, queue_timeout_seconds=0.1) as pods:
        async with aiohttp.ClientSession(pods.url) as session, session.post(CHAT, json=body()) as response:
            raw = (await response.read()).decode()
    assert raw.startswith(": keepalive\n\n")
    assert raw.endswith("data: [DONE]\n\n")
