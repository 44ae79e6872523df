"""One pod, or none, behind the edge."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.stack.harness import running_edge, until
from tests.stack.stub_pod import StubPod

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.stack.harness import RunningEdge

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pod() -> AsyncIterator[StubPod]:
    """The only pod."""
    started = await StubPod("engine-1").start()
    yield started
    await started.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge() -> AsyncIterator[RunningEdge]:
    """An edge that passes on three requests at a time and began without a pod."""
    async with running_edge([], max_requests=3) as started:
        yield started


async def _ask(edge: RunningEdge) -> tuple[int, dict[str, str], str]:
    async with edge.session.post(f"{edge.url}/chat", data=b"{}") as response:
        return response.status, {name.lower(): value for name, value in response.headers.items()}, (await response.json())["error"]["code"]


async def test_edge_without_pods_says_so(edge: RunningEdge) -> None:
    """Before any pod is there the client gets a 503 with Retry-After, and no pod was asked."""
    status, headers, code = await _ask(edge)
    assert (status, code, headers["x-convoy-attempts"], headers["retry-after"]) == (503, "no_healthy_engine", "0", "2")


async def test_first_pod_is_used_and_asked_once(edge: RunningEdge, pod: StubPod) -> None:
    """The first pod is used as soon as it is listed; once it is known to be the only one, a failing request is not repeated on it."""
    edge.write_pods([pod.entry()])
    await edge.until_healthy("engine-1")

    async def rendered() -> bool:
        told = edge.status
        return bool(told["num_retries"] == 0 and edge.is_agreed)

    await until(rendered, lambda: f"no retries for one pod: {edge.status}")
    pod.behaviour = "500"
    before = len(pod.seen)
    status, headers, code = await _ask(edge)
    assert (status, code, headers["x-convoy-attempts"], headers["x-convoy-pod"]) == (500, "engine_error", "1", "engine-1")
    assert len(pod.seen) == before + 1


async def test_overflow_of_the_edge_is_a_429(edge: RunningEdge, pod: StubPod) -> None:
    """More requests than the edge may pass on are refused at once with Retry-After, as a limit and not as a failure."""
    pod.behaviour = "hang"
    held = [asyncio.create_task(_ask(edge)) for _ in range(3)]

    async def full() -> bool:
        return await edge.active_requests() == len(held)

    await until(full, "three requests under way")
    status, headers, code = await _ask(edge)
    assert (status, code, headers["retry-after"], headers["x-convoy-pod"]) == (429, "edge_overloaded", "2", "edge")
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)


async def test_edge_json_is_never_a_half(edge: RunningEdge) -> None:
    """What the edge says of itself can be read at any time and has what `convoy status` shows."""
    told = json.loads((edge.state_dir / "edge.json").read_text())
    names = {
        "updated_at",
        "pods",
        "num_retries",
        "num_clients",
        "num_crash_loops",
        "written",
        "envoy",
        "inputs",
        "settings",
        "errors",
        "error",
    }
    assert set(told) == names
