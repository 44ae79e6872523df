"""How much one client may hold: connections, time for headers and bodies, idle time, answers that nobody reads."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.stack.harness import DEADLINE_SECONDS, running_edge
from tests.stack.raw_http import conversation, exchange
from tests.stack.raw_pod import RawPod

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.stack.harness import RunningEdge

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]

MAX_CONNECTIONS = 8
GET = b"GET /v1/models HTTP/1.1\r\nhost: edge\r\n\r\n"
SHORT = {"request_headers_timeout: 10s": "request_headers_timeout: 1s", "request_timeout: 60s": "request_timeout: 1s"}
DRIBBLED: dict[str, bytes] = {
    "headers": b"GET /v1/models HTTP/1.1\r\nhost: edge\r\nx-a: ",
    "body": b"POST /chat HTTP/1.1\r\nhost: edge\r\ncontent-length: 100000\r\n\r\n",
    "chunks": b"POST /chat HTTP/1.1\r\nhost: edge\r\ntransfer-encoding: chunked\r\n\r\n186a0\r\n",
    "chunk extension": b"POST /chat HTTP/1.1\r\nhost: edge\r\ntransfer-encoding: chunked\r\n\r\n4;",
    "body for a page": b"POST /v1/models HTTP/1.1\r\nhost: edge\r\ncontent-length: 100000\r\n\r\n",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pod() -> AsyncIterator[RawPod]:
    """The only pod."""
    started = await RawPod("engine-1").start()
    yield started
    await started.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(pod: RawPod) -> AsyncIterator[RunningEdge]:
    """An edge with a short patience and few connections."""
    edit = {"envoy.yaml": {**SHORT, "idle_timeout: 120s": "idle_timeout: 2s", "drain_timeout: 10s": "drain_timeout: 1s"}}
    async with running_edge([pod.entry()], edit=edit, max_connections=MAX_CONNECTIONS) as running:
        await running.until_healthy("engine-1")
        yield running


async def _answered(port: int) -> bool:
    """Whether a new connection gets an answer; without one it was ended at once."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        return (await exchange(port, GET)).status == 200
    return False


async def _until_answered(port: int) -> None:
    for _ in range(int(DEADLINE_SECONDS / 0.05)):
        if await _answered(port):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("no new connection is taken")


async def test_one_connection_too_many_is_refused_until_another_ends(edge: RunningEdge) -> None:
    """MAX_CONNECTIONS are kept, busy ones here; the next is ended without an answer; one that ends makes room at once."""
    held: list[asyncio.StreamWriter] = []
    try:
        while len(held) < MAX_CONNECTIONS:
            reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
            writer.write(b"POST /chat HTTP/1.1\r\nhost: edge\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # one of an earlier test has not ended yet
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
                held.append(writer)
        assert not await _answered(edge.port)
        held.pop().close()
        await _until_answered(edge.port)
    finally:
        for writer in held:
            writer.close()
    await _until_answered(edge.port)


async def test_idle_connection_is_ended(edge: RunningEdge) -> None:
    """A connection without a request is closed by the edge after `idle_timeout` and `drain_timeout`, whether it had one before or not."""
    answers, nothing = await asyncio.gather(conversation(edge.port, GET), conversation(edge.port, b""))
    assert [answer.status for answer in answers] == [200]
    assert [answer.status for answer in nothing] in ([], [408])


@pytest.mark.parametrize("case", DRIBBLED)
async def test_dribbling_client_is_ended(edge: RunningEdge, pod: RawPod, case: str) -> None:
    """A byte now and then keeps nothing open: the time is that of the whole, not of the silence."""
    pod.seen.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    try:
        writer.write(DRIBBLED[case])
        answer = asyncio.create_task(reader.readuntil(b"\r\n"))
        for _ in range(int(DEADLINE_SECONDS / 0.1)):
            writer.write(b"a")
            await asyncio.wait([answer], timeout=0.1)
            if answer.done():
                break
        assert await answer == b"HTTP/1.1 408 Request Timeout\r\n"
    finally:
        writer.close()
    assert not pod.seen


async def test_client_that_reads_nothing_disturbs_nobody(edge: RunningEdge, pod: RawPod) -> None:
    """A large answer that its client leaves lying is held at the pod, not in the edge, and others are answered meanwhile."""
    pod.answer_bytes = 64 << 20
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port, limit=1024)
    try:
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n")
        pod.answer_bytes = 0
        for _ in range(20):
            assert await _answered(edge.port)
        held = (await edge.stats(r"^cluster\.engine\.upstream_cx_rx_bytes_buffered$"))["cluster.engine.upstream_cx_rx_bytes_buffered"]
        heap = (await edge.stats(r"^server\.memory_allocated$"))["server.memory_allocated"]
        assert held < 8 << 20
        assert heap < 64 << 20
    finally:
        pod.answer_bytes = 0
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/models/" + b"a" * 30_000 + b" HTTP/1.1\r\nhost: edge\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: edge\r\nx-a: " + b"a" * 30_000 + b"\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: edge\r\n" + b"".join(b"x-a%d: a\r\n" % number for number in range(50)),
    ],
    ids=["path", "header", "many headers"],
)
async def test_head_within_the_limits_is_passed_on(edge: RunningEdge, pod: RawPod, head: bytes) -> None:
    """Limits refuse what is above them, not before: 30 KiB of path or of a header, and 50 headers, reach the pod whole."""
    pod.seen.clear()
    assert (await exchange(edge.port, head + b"\r\n")).status == 200
    (request,) = pod.seen
    own = [value for name, value in request.headers if name.startswith("x-a")]
    assert (request.target, own) in (("/v1/models/" + "a" * 30_000, []), ("/v1/models", ["a" * 30_000]), ("/v1/models", ["a"] * 50))
