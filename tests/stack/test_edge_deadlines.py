"""A client's deadline through Envoy and real pods: named when it passes, the pod's own word first, and never held against the pod."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.running import running_pods
from tests.stack.harness import running_edge, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.stack.harness import RunningEdge

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]

SLOW = {"message": "hi", "max_tokens": 1000, "ignore_eos": True}
"""Ten seconds of answer."""
CAPPED: dict[str, Any] = {
    "queue_timeout_seconds": 0.2,
    "keepalive_seconds": 0.4,
    "first_token_timeout_seconds": 1,
    "hang_timeout_seconds": 2,
    "stall_timeout_seconds": 2.5,
    "request_timeout_seconds": 3,
}
"""The shortest longest answer."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge() -> AsyncIterator[RunningEdge]:
    """Two pods of the fake engine at 100 tokens a second."""
    with running_pods(2, fake_tokens_per_second=100) as pods:
        async with running_edge(pods.entries, request_timeout_seconds=70) as running:
            await running.until_healthy("engine-1", "engine-2")
            yield running


async def _ask(edge: RunningEdge, deadline: str, **more: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
    headers = {"x-request-deadline-ms": deadline}
    async with edge.session.post(f"{edge.url}/chat", json={**SLOW, **more}, headers=headers) as response:
        return response.status, await response.json(), {name.lower(): value for name, value in response.headers.items()}


async def test_a_deadline_that_passes_is_named(edge: RunningEdge) -> None:
    """504 at the deadline with the deadline in words, told by the pod that had it."""
    begun = time.monotonic()
    status, body, told = await _ask(edge, "300")
    assert 0.3 <= time.monotonic() - begun < 0.3 + 1.5
    assert (status, body["error"]["code"], told["x-convoy-attempts"]) == (504, "deadline_exceeded", "1")
    assert "300 ms" in body["error"]["message"]
    assert told["x-convoy-pod"].startswith("engine-")


async def test_a_stream_ends_with_an_event_at_its_deadline(edge: RunningEdge) -> None:
    """The last event is the error, there is no [DONE], and the connection ends in good order."""
    headers = {"x-request-deadline-ms": "500"}
    async with edge.session.post(f"{edge.url}/chat", json={**SLOW, "stream": True}, headers=headers) as response:
        events = [line for line in (await response.read()).split(b"\n") if line.startswith(b"data: ")]
    assert response.status == 200
    assert len(events) > 2
    assert json.loads(events[-1].removeprefix(b"data: "))["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("value", ["0", "-5", "abc", "1.5", "9" * 16, "5, 6", "1e3"])
async def test_what_is_no_deadline_is_refused(edge: RunningEdge, value: str) -> None:
    """400 that names the header and what is allowed; no pod is asked."""
    status, body, told = await _ask(edge, value)
    assert (status, body["error"]["code"], body["error"]["param"]) == (400, "invalid_value", "x-request-deadline-ms")
    assert "whole number of milliseconds" in body["error"]["message"]
    assert told["x-convoy-attempts"] == "0"


async def test_a_deadline_beyond_the_longest_answer_is_capped(edge: RunningEdge) -> None:
    """It is no way around REQUEST_TIMEOUT_SECONDS, and no reason to refuse."""
    status, _, _ = await _ask(edge, "999999999", max_tokens=3)
    assert status == 200


async def test_two_deadlines_are_none(edge: RunningEdge) -> None:
    """Whoever sends the header twice is not given either of them."""
    headers = [("x-request-deadline-ms", "500"), ("x-request-deadline-ms", "60000")]
    async with edge.session.post(f"{edge.url}/chat", json=SLOW, headers=headers) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"], error["param"]) == (400, "invalid_value", "x-request-deadline-ms")


async def test_a_second_attempt_has_the_rest_of_the_time() -> None:
    """A pod dies at half of the deadline: the other one ends the request at the same moment as the first would have."""
    with running_pods(2, fake_tokens_per_second=100, fake_first_token_ms=1000) as pods:
        async with running_edge(pods.entries) as started:
            await started.until_healthy("engine-1", "engine-2")
            begun = time.monotonic()
            asked = [asyncio.create_task(_ask(started, "3000")) for _ in range(8)]
            await until(lambda: _are_active(started, 8), "requests at the pods")
            await asyncio.sleep(1.5 - (time.monotonic() - begun))  # the time itself is what is tested
            os.kill(pods.entry("engine-1")["pid"], signal.SIGKILL)
            answers = await asyncio.gather(*asked)
            seconds = time.monotonic() - begun
    assert {(status, body["error"]["code"]) for status, body, _ in answers} == {(504, "deadline_exceeded")}
    assert {told["x-convoy-pod"] for _, _, told in answers} == {"engine-2"}
    assert "2" in {told["x-convoy-attempts"] for _, _, told in answers}
    assert 3 <= seconds < 4


async def test_a_deadline_of_a_stream_is_capped() -> None:
    """A stream that asks for more than REQUEST_TIMEOUT_SECONDS ends there, with an event of the pod's."""
    with running_pods(1, fake_tokens_per_second=100, **CAPPED) as pods:
        async with running_edge(pods.entries, **CAPPED) as started:
            await started.until_healthy("engine-1")
            begun = time.monotonic()
            headers = {"x-request-deadline-ms": "999999999"}
            async with started.session.post(f"{started.url}/chat", json={**SLOW, "stream": True}, headers=headers) as response:
                events = [line for line in (await response.read()).split(b"\n") if line.startswith(b"data: ")]
            assert 3 <= time.monotonic() - begun < 3 + 1.5
    error = json.loads(events[-1].removeprefix(b"data: "))["error"]
    assert (error["code"], "3000 ms" in error["message"]) == ("deadline_exceeded", True)


async def _are_active(edge: RunningEdge, count: int) -> bool:
    return await edge.active_requests() == count


async def test_deadlines_eject_no_pod(edge: RunningEdge) -> None:
    """However many of them pass: a client's impatience says nothing about a pod."""
    answers = await asyncio.gather(*(_ask(edge, "50") for _ in range(30)))
    assert {status for status, _, _ in answers} == {504}
    ejections = await edge.stats(r"^cluster\.engine\.outlier_detection\.ejections_enforced_total$")
    assert ejections == {"cluster.engine.outlier_detection.ejections_enforced_total": 0}
    assert await edge.healthy_pods() == {"engine-1", "engine-2"}


async def test_what_the_edge_lets_through_a_pod_reads(edge: RunningEdge) -> None:
    """A header of 20 kB, as some companies' tokens are, is below the edge's limit and no reason for a pod to refuse."""
    async with edge.session.get(f"{edge.url}/v1/models", headers={"x-long": "a" * 20_000}) as response:
        assert response.status == 200
