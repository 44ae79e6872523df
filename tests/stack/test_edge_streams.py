"""How the edge tells a stream from a JSON answer, and what follows from it."""

from __future__ import annotations

import asyncio
import io
import json
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio

from tests.stack.harness import running_edge, until
from tests.stack.stub_pod import StubPod

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.stack.harness import RunningEdge

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]

# As short as their order allows, so that the limits are reached within a test.
LIMITS = {
    "queue_timeout_seconds": 0.2,
    "keepalive_seconds": 0.4,
    "first_token_timeout_seconds": 1,
    "hang_timeout_seconds": 2,
    "stall_timeout_seconds": 2.5,
    "slow_client_timeout_seconds": 2.5,
    "request_timeout_seconds": 4,
}
LONG = 'text with "stream": true, {[ and \\ in it. ' * 20_000

STREAMS: dict[str, str] = {
    "alone": '{"stream": true}',
    "spaces": '\n{ "stream"\n:\ttrue }',
    "after strings": json.dumps({"messages": [{"role": "user", "content": LONG}], "stream": True}),
    "after many messages": json.dumps({"messages": [{"role": "user", "content": "hi"}] * 10_000, "stream": True}),
    "after megabytes": json.dumps({"messages": [{"role": "user", "content": LONG}] * 7, "stream": True}),
    "before other members": '{"stream": true, "n": 1, "stop": ["}"]}',
    "the last one counts": '{"stream": false, "stream": true}',
    "after a backslash": '{"user": "\\\\", "stream": true}',
    "after its own name as a text": json.dumps({"stop": ["stream"] * 100, "stream": True}),
}
ANSWERS: dict[str, str] = {
    "absent": '{"n": 1}',
    "false": '{"stream": false}',
    "null": '{"stream": null}',
    "a text": '{"stream": "true"}',
    "longer word": '{"stream": trueish}',
    "nested": '{"metadata": {"stream": true}}',
    "in a list": '[{"stream": true}]',
    "named often": json.dumps({"stop": ["stream"] * 100, "stream": False}),
    "as a value": '{"user": "stream", "n": true}',
    "in a text": json.dumps({"messages": [{"role": "user", "content": '"stream": true'}], "n": 1}),
    "escaped quote": '{"user": "\\", \\"stream\\": true"}',
    "the last one counts": '{"stream": true, "stream": false}',
    "cut off": '{"stream": true',
    "brackets only": "[" * 1_000_000 + '"stream": true',
    "empty": "",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods() -> AsyncIterator[list[StubPod]]:
    """Two pods."""
    started = [await StubPod(f"engine-{number}").start() for number in (1, 2)]
    yield started
    for pod in started:
        await pod.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(pods: list[StubPod]) -> AsyncIterator[RunningEdge]:
    """An edge with short time limits, whose ejections last so briefly that one test does not reach into the next."""
    edit = {"    interval: 1s\n    base": "    interval: 0.1s\n    base"}
    settings: dict[str, Any] = {**LIMITS, "ejection_seconds": 0.1}
    async with running_edge(pods, edit={"clusters.yaml": edit}, **settings) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def edge(running: RunningEdge, pods: list[StubPod]) -> RunningEdge:
    """The edge with both pods whole and in use."""
    for pod in pods:
        pod.behaviour = "answer"
        pod.pause.set()
    await running.until_healthy("engine-1", "engine-2")
    return running


async def _post(edge: RunningEdge, body: str, path: str = "/v1/chat/completions") -> tuple[int, dict[str, str], str]:
    async with edge.session.post(f"{edge.url}{path}", data=body.encode()) as response:
        return response.status, {name.lower(): value for name, value in response.headers.items()}, await response.text()


async def _kind(edge: RunningEdge, body: str, request_id: str) -> str:
    """Which kind of answer the edge took a request for: what its access log says."""
    async with edge.session.post(f"{edge.url}/chat", data=io.BytesIO(body.encode()), headers={"x-request-id": request_id}) as response:
        await response.read()
    found: list[dict[str, Any]] = []

    async def logged() -> bool:
        lines = (edge.state_dir / "envoy.log").read_text().splitlines()
        found[:] = [json.loads(line) for line in lines if request_id in line]
        return bool(found)

    await until(logged, f"an access record of {request_id}")
    return "stream" if found[0]["stream"] == "1" else "answer"


@pytest.mark.parametrize("case", STREAMS)
async def test_stream_is_recognised(edge: RunningEdge, case: str) -> None:
    """A top-level `"stream": true` makes it a stream, wherever in the body it stands."""
    assert await _kind(edge, STREAMS[case], f"stream-{case.replace(' ', '-')}") == "stream"


@pytest.mark.parametrize("case", ANSWERS)
async def test_anything_else_is_a_json_answer(edge: RunningEdge, case: str) -> None:
    """Text about streams, nested members and bodies in doubt get the time limits of JSON answers."""
    assert await _kind(edge, ANSWERS[case], f"answer-{case.replace(' ', '-')}") == "answer"


async def test_stream_moves_on_from_a_hung_pod(edge: RunningEdge, pods: list[StubPod]) -> None:
    """A stream that gets no first token from one pod is answered by the other one."""
    pods[0].behaviour = "hang"
    attempts = set()

    async def moved() -> bool:
        status, headers, text = await _post(edge, '{"stream": true}')
        assert status == 200, text
        assert headers["x-convoy-pod"] == "engine-2"
        assert text.endswith("data: [DONE]\n\n")
        attempts.add(headers["x-convoy-attempts"])
        return "2" in attempts

    await until(moved, "a stream that was moved")


async def test_hung_stream_names_the_limit(edge: RunningEdge, pods: list[StubPod]) -> None:
    """With every pod hung the client gets 504 with the name of the limit, after both were tried."""
    for pod in pods:
        pod.behaviour = "hang"
    status, headers, text = await _post(edge, '{"stream": true}')
    error = json.loads(text)["error"]
    assert (status, error["code"], headers["x-convoy-attempts"]) == (504, "upstream_timeout", "2")
    assert "FIRST_TOKEN_TIMEOUT_SECONDS" in error["message"]


async def test_json_answer_is_not_cut_by_limits_of_streams(edge: RunningEdge, pods: list[StubPod]) -> None:
    """A JSON answer may take longer than a first token and a stall, is not made twice, and ends at its own limit."""
    for pod in pods:
        pod.behaviour = "hang"
    before = sum(len(pod.seen) for pod in pods)
    began = time.monotonic()
    status, headers, text = await _post(edge, "{}")
    error = json.loads(text)["error"]
    assert (status, error["code"], headers["x-convoy-attempts"]) == (504, "upstream_timeout", "1")
    assert "REQUEST_TIMEOUT_SECONDS" in error["message"]
    seconds = time.monotonic() - began
    assert seconds > LIMITS["stall_timeout_seconds"]
    told = float(headers["server-timing"].removeprefix("total;dur=")) / 1000
    assert told == pytest.approx(seconds, rel=0.1, abs=0.05)
    assert sum(len(pod.seen) for pod in pods) == before + 1


async def test_stream_outlives_the_first_token_limit(edge: RunningEdge, pods: list[StubPod]) -> None:
    """A stream that has begun may go on for longer than its first token was allowed to take."""
    for pod in pods:
        pod.pause.clear()
    began = time.monotonic()
    async with edge.session.post(f"{edge.url}/chat", data=b'{"stream": true}') as response:
        await response.content.readuntil(b"\n\n")
        await asyncio.sleep(LIMITS["first_token_timeout_seconds"] * 1.5)  # the time itself is what is tested
        for pod in pods:
            pod.pause.set()
        assert (await response.text()).endswith("data: [DONE]\n\n")
    assert time.monotonic() - began > LIMITS["first_token_timeout_seconds"]


async def test_stalled_stream_breaks_visibly(edge: RunningEdge, pods: list[StubPod]) -> None:
    """A stream that brings no byte for too long ends as a broken one, never as a whole one."""
    for pod in pods:
        pod.pause.clear()
    async with edge.session.post(f"{edge.url}/chat", data=b'{"stream": true}') as response:
        with pytest.raises(aiohttp.ClientError):
            await response.read()
