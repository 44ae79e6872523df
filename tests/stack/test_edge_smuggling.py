"""What two servers could read in two ways is refused, or written anew, so that the pod reads what the edge read (docs/edge.md)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.stack.harness import running_edge
from tests.stack.raw_http import conversation, exchange
from tests.stack.raw_pod import RawPod
from tests.stack.wire_cases import ACCEPTED, MAX_BODY_BYTES, OLD, POST, REFUSED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.stack.harness import RunningEdge
    from tests.stack.raw_pod import Received

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]

LAST = b"GET /v1/models/last HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n"
"""Follows each case on its connection: what the edge took for the end of the case is seen by where it takes this to begin."""


OF_THE_EDGE = {
    *("host", "content-length", "transfer-encoding", "traceparent", "tracestate", "x-forwarded-for", "x-forwarded-proto", "x-request-id"),
    *("x-client-id", "x-client-role", "x-envoy-attempt-count", "x-envoy-expected-rq-timeout-ms", "x-envoy-external-address"),
}
"""Headers that the edge sets, or that are shown on their own."""


def _shown(request: Received) -> str:
    """A request at the pod as the table writes it; fails if it has more than one reading, or names another caller than the edge does."""
    names = [name for name, _ in request.headers]
    assert request.version == "HTTP/1.1"
    assert len(names) == len(set(names)), request
    assert not [byte for _, value in request.headers for byte in value if ord(byte) < 32 and byte != "\t"], request
    assert (request.all("x-client-id"), request.all("x-client-role")) == (["local"], ["ops"])
    assert len(request.all("x-request-id")[0]) == 36
    words = [request.method, request.target, f"@{request.all('host')[0]}"]
    words += [f"[{value}]" for name in ("content-length", "transfer-encoding") for value in request.all(name)]
    words += [f"{name}={value}" for name, value in request.headers if name not in OF_THE_EDGE]
    return " ".join([*words, *([request.body.decode()] if request.body else [])])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pod() -> AsyncIterator[RawPod]:
    """The only pod."""
    started = await RawPod("engine-1").start()
    yield started
    await started.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(pod: RawPod) -> AsyncIterator[RunningEdge]:
    """An edge with a small body limit."""
    async with running_edge([pod.entry()], max_body_bytes=MAX_BODY_BYTES) as running:
        await running.until_healthy("engine-1")
        yield running


@pytest.fixture(autouse=True)
def _forget(pod: RawPod) -> None:
    pod.seen.clear()
    pod.malformed.clear()


@pytest.mark.parametrize("case", REFUSED)
async def test_ambiguous_request_is_refused_whole(edge: RunningEdge, pod: RawPod, case: str) -> None:
    """The client gets one error in OpenAI's shape, and the pod nothing of it; at most the request behind it is answered, as itself."""
    data, status = REFUSED[case]
    first, *others = await conversation(edge.port, data + LAST)
    assert first.status == status, first
    assert first.error["type"] == "invalid_request_error"
    assert [json.loads(answer.body)["target"] for answer in others] == [request.target for request in pod.seen]
    assert [request.target for request in pod.seen] in ([], ["/v1/models/last"])
    assert not pod.malformed


@pytest.mark.parametrize("case", ACCEPTED)
async def test_accepted_request_reaches_the_pod_with_one_reading(edge: RunningEdge, pod: RawPod, case: str) -> None:
    """What the edge accepts it writes anew: one host, one framing, its own headers; once, and with nothing of another request."""
    data, expected = ACCEPTED[case]
    answers = [answer for answer in await conversation(edge.port, data + LAST) if answer.status != 100]
    assert [answer.status for answer in answers] == [200] * (len(expected) + 1)
    assert [_shown(request) for request in pod.seen] == [*expected, "GET /v1/models/last @edge"]
    assert not pod.malformed


@pytest.mark.parametrize("case", OLD)
async def test_old_or_unknown_version_ends_the_connection(edge: RunningEdge, pod: RawPod, case: str) -> None:
    """A client that does not speak HTTP/1.1 gets one answer; what it sent behind its request is no request."""
    answers = await conversation(edge.port, OLD[case] + LAST)
    assert [answer.status for answer in answers] == [200]
    assert [request.target for request in pod.seen] == ["/v1/models"]


async def test_http_1_0_keeps_a_connection_that_is_to_be_kept(edge: RunningEdge, pod: RawPod) -> None:
    """HTTP/1.0 with keep-alive: the next request on the connection is answered, too."""
    kept = b"GET /v1/models HTTP/1.0\r\nconnection: keep-alive\r\n\r\n"
    first, second = await conversation(edge.port, kept + LAST)
    assert (first.headers["connection"], first.status, second.status) == ("keep-alive", 200, 200)
    assert [_shown(request) for request in pod.seen] == ["GET /v1/models @convoy", "GET /v1/models/last @edge"]


async def test_expectation_of_a_large_body_is_refused_before_it_comes(edge: RunningEdge, pod: RawPod) -> None:
    """A body announced as too large gets its 413 at once. Envoy says 100 first (it answers expectations before it looks at sizes)."""
    *interim, answer = await conversation(edge.port, POST + b"expect: 100-continue\r\ncontent-length: 999999999\r\n\r\n")
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert [one.status for one in interim] in ([], [100])
    assert not pod.seen


async def test_interim_answer_comes_before_the_body(edge: RunningEdge) -> None:
    """A client that waits for 100 before it sends its body gets it."""
    answer = await exchange(edge.port, POST + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n")
    assert answer.status == 100
