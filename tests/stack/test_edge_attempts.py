"""`x-convoy-attempts` on the edge's own answers: how many pods a request was really sent to, or tried to reach."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.otlp import receiver
from tests.stack.harness import running_edge, until
from tests.stack.stub_pod import StubPod

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.stack.harness import RunningEdge

pytestmark = [pytest.mark.stack, pytest.mark.asyncio]

LIMITS: dict[str, Any] = {"queue_timeout_seconds": 0.1, "keepalive_seconds": 0.2, "first_token_timeout_seconds": 0.5}
JSON, STREAM = b"{}", b'{"stream": true}'


@pytest_asyncio.fixture
async def pods() -> AsyncIterator[list[StubPod]]:
    """Two stand-ins."""
    started = [await StubPod(f"engine-{number}").start() for number in (1, 2)]
    yield started
    for pod in started:
        await pod.stop()


async def _ask(edge: RunningEdge, body: bytes = JSON) -> tuple[int, str, str, str]:
    """Status, code, attempts and pod."""
    async with edge.session.post(f"{edge.url}/chat", data=body) as response:
        code = json.loads(await response.text()).get("error", {}).get("code", "")
        return response.status, code, response.headers["x-convoy-attempts"], response.headers["x-convoy-pod"]


def _seen(pods: list[StubPod]) -> int:
    return sum(len(pod.seen) for pod in pods)


async def _until_seen(pods: list[StubPod], count: int) -> None:
    async def seen() -> bool:
        return _seen(pods) >= count

    await until(seen, f"{count} requests at the pods")


async def _end(tasks: list[asyncio.Task[tuple[int, str, str, str]]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_request_too_many_asked_no_pod(pods: list[StubPod]) -> None:
    """Beyond MAX_REQUESTS: 429 at once, attempts 0, though connections lie idle and a pod has time."""
    async with running_edge(pods, max_requests=2) as edge:
        await asyncio.gather(*(_ask(edge) for _ in range(2)))
        for pod in pods:
            pod.behaviour = "hang"
        before = _seen(pods)
        held = [asyncio.create_task(_ask(edge)) for _ in range(2)]
        await _until_seen(pods, before + 2)
        assert await asyncio.wait_for(_ask(edge), 10) == (429, "edge_overloaded", "0", "edge")
        assert _seen(pods) == before + 2
        await _end(held)


async def test_a_request_that_may_not_wait_asked_no_pod(pods: list[StubPod]) -> None:
    """One connection a pod and one place to wait: whoever finds neither gets 429, attempts 0; waiting ones are answered."""
    async with running_edge(pods[:1], max_pod_connections=1, max_pending_requests=1) as edge:
        pods[0].behaviour = "hang"
        held = [asyncio.create_task(_ask(edge))]
        await _until_seen(pods, 1)
        held.append(asyncio.create_task(_ask(edge)))

        async def waits() -> bool:
            name = "cluster.engine.upstream_rq_pending_active"
            return bool((await edge.stats("^" + name + "$"))[name])

        await until(waits, "a request that waits")
        assert await asyncio.wait_for(_ask(edge), 10) == (429, "edge_overloaded", "0", "edge")
        assert (await edge.stats("^cluster.engine.upstream_rq_pending_overflow$"))["cluster.engine.upstream_rq_pending_overflow"] == 1
        await _end(held)


async def test_an_attempt_that_found_no_pod_does_not_count(pods: list[StubPod]) -> None:
    """A request whose pod broke when no other was left was sent once; a later one not at all."""
    async with running_edge(pods) as edge:
        for pod in pods:
            pod.behaviour = "hang"
        asked = [asyncio.create_task(_ask(edge)) for _ in range(4)]
        await _until_seen(pods, 4)
        edge.write_pods([])
        await edge.until_healthy()
        await asyncio.gather(*(pod.stop() for pod in pods))
        assert set(await asyncio.gather(*asked)) == {(503, "no_healthy_engine", "1", "edge")}
        assert await _ask(edge) == (503, "no_healthy_engine", "0", "edge")


async def test_refused_connections_and_time_outs_count(pods: list[StubPod]) -> None:
    """Two pods that bring no first token, or take no connection, were tried: attempts 2."""
    async with running_edge(pods, **LIMITS) as edge:
        for pod in pods:
            pod.behaviour = "hang"
        assert await _ask(edge, STREAM) == (504, "upstream_timeout", "2", "edge")
        await edge.stop("edge")  # it would take the pods out
        await asyncio.gather(*(pod.stop() for pod in pods))
        assert await _ask(edge) == (503, "no_healthy_engine", "2", "edge")


async def test_log_and_trace_say_what_the_answer_says(pods: list[StubPod]) -> None:
    """The attempts of an answered request, and of one for which there was no pod, which Envoy itself counts."""
    async with receiver() as collector, running_edge(pods, otel_exporter_otlp_endpoint=collector.url) as edge:

        async def told(request_id: str, num_spans: int) -> tuple[str, str, str]:
            async with edge.session.post(f"{edge.url}/chat", data=JSON, headers={"x-request-id": request_id}) as response:
                await response.read()
            spans = await collector.trace(response.headers["x-trace-id"], num_spans)
            record = await _logged(edge, request_id)
            return response.headers["x-convoy-attempts"], record["attempts"], spans["ingress"].attributes["convoy.attempts"]

        assert await told("is-answered", 2) == ("1", "1", "1")
        edge.write_pods([])
        await edge.until_healthy()
        assert await told("finds-no-pod", 1) == ("0", "0", "0")


async def _logged(edge: RunningEdge, request_id: str) -> dict[str, Any]:
    """The access record of one request."""
    found: list[dict[str, Any]] = []

    async def logged() -> bool:
        found[:] = [json.loads(line) for line in (edge.state_dir / "envoy.log").read_text().splitlines() if request_id in line]
        return bool(found)

    await until(logged, f"an access record of {request_id}")
    return found[0]


async def test_a_pod_that_takes_no_connection_is_left_for_another(pods: list[StubPod]) -> None:
    """As on a machine that is gone: nothing answers, nothing is refused. After `connect_timeout` another pod is asked."""
    async with running_edge(pods) as edge:
        await edge.stop("edge")  # it would take the pod out
        await pods[1].stop()
        with _silent_port(pods[1].port):
            answers = await asyncio.wait_for(asyncio.gather(*(_ask(edge) for _ in range(8))), 15)
        assert {(status, pod) for status, _, _, pod in answers} == {(200, "engine-1")}
        assert "2" in {attempts for _, _, attempts, _ in answers}
        name = "cluster.engine.upstream_cx_connect_timeout"
        assert (await edge.stats(f"^{name}$"))[name] >= 1


@contextlib.contextmanager
def _silent_port(port: int) -> Iterator[None]:
    """A port whose queue of connections is full: the kernel drops what comes, as if nobody were there."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        for _ in range(10):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0.3)
            try:
                waiting.connect(("127.0.0.1", port))
            except TimeoutError:
                yield
                return
        raise AssertionError("the queue of connections never filled")


async def test_a_changed_cluster_loses_nothing(pods: list[StubPod]) -> None:
    """A change of the cluster makes it anew: streams under way end whole, and the new breakers do not count them."""
    edit = {"clusters.yaml": {"connect_timeout: 1s": "connect_timeout: 1.1s"}}
    async with running_edge(pods, edit=edit, max_requests=10) as edge:
        for pod in pods:
            pod.pause.clear()
        streams = [await edge.session.post(f"{edge.url}/chat", data=STREAM) for _ in range(10)]
        assert await _ask(edge) == (429, "edge_overloaded", "0", "edge")
        path = edge.envoy_dir / "clusters.yaml"
        path.write_text(path.read_text().replace("connect_timeout: 1.1s", "connect_timeout: 1.2s"))
        await edge.until_applied(path)
        await edge.until_healthy("engine-1", "engine-2")
        for _ in range(20):
            assert (await _ask(edge))[0] == 200
        for pod in pods:
            pod.pause.set()
        for stream in streams:
            assert (await stream.text()).endswith("data: [DONE]\n\n")
