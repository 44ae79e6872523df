"""The edge, its pods file or Envoy go and come back: what clients see of it."""

from __future__ import annotations

import signal
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
async def edge() -> AsyncIterator[RunningEdge]:
    """Two pods behind an edge."""
    pods = [await StubPod(f"engine-{number}").start() for number in (1, 2)]
    async with running_edge(pods) as started:
        yield started
    for pod in pods:
        await pod.stop()


async def _ask(edge: RunningEdge) -> int:
    async with edge.session.post(f"{edge.url}/v1/chat/completions", data=b"{}") as response:
        await response.read()
        return response.status


async def test_edge_dies_and_returns_without_a_change(edge: RunningEdge) -> None:
    """Envoy serves on without the edge; the edge's return changes nothing that Envoy runs."""

    async def agreed() -> bool:
        return edge.is_agreed

    await until(agreed, lambda: f"Envoy runs what is written: {edge.status}")
    before = edge.status["written"]
    told_at = edge.status["updated_at"]
    assert await edge.stop("edge", signal.SIGKILL) == -signal.SIGKILL
    assert (await _ask(edge)) == 200
    await edge.start_edge()
    await until(lambda: _holds(edge.status["updated_at"] > told_at), "the new edge's word")
    await until(agreed, "agreement")
    assert edge.status["written"] == before
    assert await edge.stop("edge") == 0
    assert (await _ask(edge)) == 200
    await edge.start_edge()


async def test_broken_pods_file_changes_nothing(edge: RunningEdge) -> None:
    """A pods file that cannot be read leaves the pods in use, and the edge says what is wrong with it."""
    (edge.state_dir / "pods.json").write_text('{"pods": [{"name": 1')
    await until(lambda: _holds("pods.json" in edge.status["error"]), "the edge's complaint")
    assert (await _ask(edge)) == 200
    assert await edge.healthy_pods() == {"engine-1", "engine-2"}


async def test_envoy_returns_after_a_kill(edge: RunningEdge) -> None:
    """An Envoy that was killed serves again from the files as they lie, with the same pods."""
    await edge.stop("envoy", signal.SIGKILL)
    await edge.start_envoy()
    await edge.until_healthy("engine-1", "engine-2")
    assert (await _ask(edge)) == 200


async def _holds(value: bool) -> bool:
    return value
