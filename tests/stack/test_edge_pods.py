"""Pods that fail, come, drain and go behind a real Envoy and a real edge: what clients see of it."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.stack.harness import running_edge, until
from tests.stack.stub_pod import StubPod

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.stack.harness import RunningEdge
    from tests.stack.stub_pod import Behaviour

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods() -> AsyncIterator[list[StubPod]]:
    """Three pods; the third one is not in the pods file at first."""
    started = [await StubPod(f"engine-{number}").start() for number in (1, 2, 3)]
    yield started
    for pod in started:
        await pod.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(pods: list[StubPod]) -> AsyncIterator[RunningEdge]:
    """An edge whose ejections last so briefly that one test does not reach into the next."""
    edit = {"base_ejection_time: 5s": "base_ejection_time: 0.1s", "    interval: 1s\n    base": "    interval: 0.1s\n    base"}
    async with running_edge(pods[:2], edit={"clusters.yaml": edit}) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def edge(running: RunningEdge, pods: list[StubPod]) -> RunningEdge:
    """The edge with the first two pods whole and in use."""
    for pod in pods:
        pod.state, pod.behaviour, pod.started_at = "ready", "answer", 0.0
        pod.pause.set()
        await pod.stop()
        await pod.start()
    running.write_pods([pod.entry() for pod in pods[:2]])
    await running.until_healthy("engine-1", "engine-2")
    return running


async def _ask(edge: RunningEdge, body: bytes = b"{}") -> tuple[int, dict[str, str], str]:
    async with edge.session.post(f"{edge.url}/v1/chat/completions", data=io.BytesIO(body)) as response:
        return response.status, {name.lower(): value for name, value in response.headers.items()}, await response.text()


@asynccontextmanager
async def _traffic(edge: RunningEdge) -> AsyncIterator[Counter[tuple[int, str]]]:
    """Clients that ask one after the other all the while; counts what they got, by status and pod."""
    seen: Counter[tuple[int, str]] = Counter()
    ends = asyncio.Event()

    async def client() -> None:
        while not ends.is_set():
            status, headers, _ = await _ask(edge, b'{"stream": true}' if len(seen) % 2 else b"{}")
            seen[status, headers["x-convoy-pod"]] += 1

    clients = [asyncio.create_task(client()) for _ in range(4)]
    try:
        yield seen
    finally:
        ends.set()
        await asyncio.gather(*clients)


@pytest.mark.parametrize("behaviour", ["429", "500", "503", "reset"])
@pytest.mark.parametrize("body", [b"{}", b'{"stream": true}'], ids=["json", "stream"])
async def test_failing_pod_is_hidden_by_the_other(edge: RunningEdge, pods: list[StubPod], behaviour: Behaviour, body: bytes) -> None:
    """What one pod refuses or breaks on before its first token is answered by the other one, on the second attempt."""
    pods[0].behaviour = behaviour
    attempts = set()

    async def retried() -> bool:
        status, headers, text = await _ask(edge, body)
        assert (status, headers["x-convoy-pod"]) == (200, "engine-2"), text
        attempts.add(headers["x-convoy-attempts"])
        return "2" in attempts

    await until(retried, "a request that was retried")


async def test_large_body_is_retried_whole(edge: RunningEdge, pods: list[StubPod]) -> None:
    """A prompt as large as MAX_BODY_BYTES allows survives a failing pod like a short one."""
    pods[0].behaviour = "reset"
    body = b'{"prompt": "' + b"x" * (8 * 1024 * 1024 - 14) + b'"}'
    attempts = set()

    async def retried() -> bool:
        status, headers, text = await _ask(edge, body)
        assert (status, json.loads(text)["bytes"]) == (200, len(body)), text
        attempts.add(headers["x-convoy-attempts"])
        return "2" in attempts

    await until(retried, "a large body that was retried")


async def test_full_pods_answer_reaches_the_client_whole(edge: RunningEdge, pods: list[StubPod]) -> None:
    """With every pod full the client gets a pod's own 429, body and Retry-After included."""
    for pod in pods:
        pod.behaviour = "429"
    status, headers, text = await _ask(edge)
    assert (status, headers["retry-after"], headers["x-convoy-attempts"]) == (429, "7", "2")
    assert json.loads(text)["error"]["code"] == "queue_full"


async def test_request_that_breaks_two_pods_is_an_engine_error(edge: RunningEdge, pods: list[StubPod]) -> None:
    """A request on which two pods broke off is answered 500 engine_error, not tried on the rest."""
    for pod in pods:
        pod.behaviour = "reset"
    status, headers, text = await _ask(edge)
    assert (status, headers["x-convoy-attempts"], headers["x-convoy-pod"]) == (500, "2", "edge")
    error = json.loads(text)["error"]
    assert (error["type"], error["param"], error["code"]) == ("server_error", None, "engine_error")


async def test_no_pod_left_is_said_at_once(edge: RunningEdge, pods: list[StubPod]) -> None:
    """With every pod dead the client gets a 503 with Retry-After within two seconds, before and after the edge has noticed."""
    await asyncio.gather(*(pod.stop() for pod in pods[:2]))

    async def refused() -> None:
        began = time.monotonic()
        status, headers, text = await _ask(edge)
        assert (status, headers["retry-after"], headers["x-convoy-pod"]) == (503, "2", "edge"), text
        assert json.loads(text)["error"]["code"] == "no_healthy_engine"
        assert time.monotonic() - began < 2

    await refused()

    async def noticed() -> bool:
        return all(pod["state"] == "gone" for pod in edge.status["pods"]) and not await edge.healthy_pods()

    await until(noticed, lambda: f"both pods gone: {edge.status}")
    await refused()


async def test_killed_pod_loses_no_request_in_it(edge: RunningEdge, pods: list[StubPod]) -> None:
    """Requests that a pod holds when it dies are answered by the other one, all of them."""
    pods[0].behaviour = "hang"
    asked = [asyncio.create_task(_ask(edge)) for _ in range(60)]

    async def held() -> bool:
        active = await edge.active_requests()
        return active > 0 and sum(task.done() for task in asked) + active == len(asked)

    await until(held, "requests in the pod")
    await pods[0].stop()
    answers = await asyncio.gather(*asked)
    assert {(status, headers["x-convoy-pod"]) for status, headers, _ in answers} == {(200, "engine-2")}
    assert "2" in {headers["x-convoy-attempts"] for _, headers, _ in answers}


async def test_pods_come_and_go_under_traffic(edge: RunningEdge, pods: list[StubPod]) -> None:
    """A pod that is added gets requests, one that is removed gets none, and no client notices either."""
    async with _traffic(edge) as seen:
        edge.write_pods([pod.entry() for pod in pods])
        await until(lambda: _holds(seen[200, "engine-3"] > 5), "requests at the new pod")
        edge.write_pods([pod.entry() for pod in pods[1:]])
        await edge.until_healthy("engine-2", "engine-3")
        before = len(pods[0].seen)
        total = seen.total()
        await until(lambda: _holds(seen.total() > total + 50), "more traffic")
        after = len(pods[0].seen)
    assert {status for status, _ in seen} == {200}
    assert after - before <= 4, "only what was under way when it left"


async def test_draining_pod_gets_nothing_new_and_finishes(edge: RunningEdge, pods: list[StubPod]) -> None:
    """A draining pod ends its stream whole, while new requests go to the other pod without an error."""
    pods[0].pause.clear()
    pods[1].pause.clear()
    streams = [await edge.session.post(f"{edge.url}/chat", data=b'{"stream": true}') for _ in range(8)]
    pods[1].pause.set()
    async with _traffic(edge) as seen:
        pods[0].state = "draining"
        await edge.until_healthy("engine-2")
        before = len(pods[0].seen)
        total = seen.total()
        await until(lambda: _holds(seen.total() > total + 50), "more traffic")
        assert len(pods[0].seen) - before <= 4
        pods[0].pause.set()
    assert set(seen) <= {(200, "engine-2"), (200, "engine-1")}
    texts = [await stream.text() for stream in streams]
    assert all(text.endswith("data: [DONE]\n\n") for text in texts)
    assert any("engine-1" in text for text in texts)
    assert {pod["name"]: pod["state"] for pod in edge.status["pods"]} == {"engine-1": "draining", "engine-2": "ready"}


async def test_pod_is_replaced_beside_its_old_process(edge: RunningEdge, pods: list[StubPod]) -> None:
    """While a pod's new process starts beside the draining old one, Envoy knows both and clients see no failure."""
    successor = await StubPod("engine-1").start()
    successor.started_at = time.time()
    try:
        async with _traffic(edge) as seen:
            pods[0].state = "draining"
            edge.write_pods([pods[0].entry(), successor.entry(), pods[1].entry()])
            await until(lambda: _holds(len(successor.seen) > 5), "requests at the new process")
        assert {status for status, _ in seen} == {200}
    finally:
        edge.write_pods([pod.entry() for pod in pods[:2]])
        await successor.stop()


async def test_loading_pod_gets_no_request_until_ready(edge: RunningEdge, pods: list[StubPod]) -> None:
    """A pod that still loads is listed but not used; it is used soon after it says ready."""
    pods[2].state = "loading"
    edge.write_pods([pod.entry() for pod in pods])
    await until(lambda: _holds("loading" in [pod["state"] for pod in edge.status["pods"]]), "the loading pod")
    before = len(pods[2].seen)
    for _ in range(20):
        assert (await _ask(edge))[0] == 200
    assert len(pods[2].seen) == before
    pods[2].state = "ready"
    await edge.until_healthy("engine-1", "engine-2", "engine-3")


async def _holds(value: bool) -> bool:
    return value
