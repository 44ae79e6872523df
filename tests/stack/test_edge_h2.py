"""HTTP/2 in clear text with prior knowledge: whole requests and streams, what is refused and how, and floods that would cost much."""

from __future__ import annotations

import json
import struct
from functools import partial
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.stack.h2_client import (
    DATA,
    END_HEADERS,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    H2Client,
    H2Stream,
    h2_connection,
)
from tests.stack.harness import running_edge
from tests.stack.raw_pod import RawPod

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.stack.harness import RunningEdge

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]

MAX_BODY_BYTES = 65_536
Headers = list[tuple[str, str]]


def _headers(method: str = "GET", path: str = "/v1/models", authority: str = "edge", **more: str) -> Headers:
    own = [(name.replace("_", "-"), value) for name, value in more.items()]
    return [(":method", method), (":scheme", "http"), (":authority", authority), (":path", path), *own]


ANSWERED: dict[str, tuple[Headers, bytes | None, int, str]] = {
    "unknown path": (_headers(path="/drain"), None, 404, "not_found"),
    "path above": (_headers(path="/v1/../drain"), None, 404, "not_found"),
    "fragment": (_headers(path="/v1/models#a"), None, 400, "bad_request"),
    "two authorities": (_headers(authority="a,b"), None, 400, "bad_request"),
    "escaped dots": (_headers(path="/v1/models/..%2fdrain"), None, 400, "bad_request"),
    "TRACE": (_headers("TRACE"), None, 405, "method_not_allowed"),
    "a method of its own": (_headers("get"), None, 405, "method_not_allowed"),
    "CONNECT": ([(":method", "CONNECT"), (":authority", "edge:80")], None, 404, "not_found"),
    "large body": (_headers("POST", "/chat"), b"x" * (MAX_BODY_BYTES + 1), 413, "request_too_large"),
}
"""Refused with OpenAI's body."""

RESET: dict[str, tuple[Headers, bytes | None]] = {
    **{f"two {name}": ([(name, value), *_headers()], None) for name, value in _headers()},
    **{f"no {name}": ([field for field in _headers() if field[0] != name], None) for name, _ in _headers()},
    "pseudo header behind others": ([("x-a", "b"), *_headers()], None),
    "unknown pseudo header": ([(":x", "b"), *_headers()], None),
    "extended CONNECT": ([(":protocol", "websocket"), *_headers("CONNECT")], None),
    **{
        f"path {path!r}": (_headers(path=path), None)
        for path in ("", "v1/models", "http://x/v1/models", "/a /b", "/v1/models HTTP/1.1\r\nx-a: b")
    },
    **{f"method {method!r}": (_headers(method), None) for method in ("GET /drain", "GET / HTTP/1.1\r\nhost: a\r\n\r\nGET")},
    **{f"authority {name!r}": (_headers(authority=name), None) for name in ("", "a@b", "a/b", "a\r\nx-a: b")},
    **{
        f"header {name!r}: {value!r}": ([*_headers(), (name, value)], None)
        for name, value in (
            ("X-A", "b"),
            ("x_a", "b"),
            ("x a", "b"),
            ("x:a", "b"),
            ("x-a\r\nx-b", "c"),
            ("", "b"),
            ("x-a", "b\r\nx-client-id: root"),
            ("x-a", "b\0"),
            ("x-a", "b\n"),
            ("connection", "x-a"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip"),
            ("upgrade", "h2c"),
        )
    },
    **{
        f"content-length {value} of 2": (_headers("POST", "/chat", content_length=value), b"{}") for value in ("1", "3", "+2", "2, 2", "-2")
    },
    "two content-lengths": ([*_headers("POST", "/chat", content_length="2"), ("content-length", "2")], b"{}"),
    "content-length of no body": (_headers("POST", "/chat", content_length="2"), None),
    "large header": (_headers(x_a="a" * 40_000), None),
    "many headers": (_headers(**{f"x_{number}": "1" for number in range(80)}), None),
}
"""Refused by a reset of the stream: HTTP/2 gives Envoy no place for an answer."""

OPEN_POST = b"".join(
    b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in _headers("POST", "/chat")
)


def _all_begun(streams: list[H2Stream]) -> bool:
    return all(stream.body for stream in streams)


def _reset_at_once(client: H2Client, number: int) -> None:
    client.request(2 * number + 1, _headers("POST", "/chat"))
    client.send(RST_STREAM, 0, 2 * number + 1, struct.pack(">I", 8))


FLOODS: dict[str, Callable[[H2Client, int], None]] = {
    "rapid reset": _reset_at_once,
    "PING": lambda client, _: client.send(PING, 0, 0, b"12345678"),
    "SETTINGS": lambda client, _: client.send(SETTINGS, 0, 0),
    "empty DATA": lambda client, number: client.send(DATA, 0, 1) if number else client.send(HEADERS, END_HEADERS, 1, OPEN_POST),
    "CONTINUATION": lambda client, number: client.send(9 if number else HEADERS, 0, 1),
    "PRIORITY": lambda client, number: client.send(2, 0, 2 * number + 1, b"\0\0\0\0\1"),
    "WINDOW_UPDATE": lambda client, _: client.send(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"),
}


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
    pod.pause.set()


async def test_h2c_answers_requests_of_one_connection(edge: RunningEdge, pod: RawPod) -> None:
    """A client that speaks HTTP/2 from the first byte is answered, several requests at a time; a pod sees HTTP/1.1 with one host."""
    async with h2_connection(edge.port) as client:
        asked = [client.request(1, [*_headers(), ("host", "other")]), client.request(3, _headers("POST", "/chat"), b"{}")]
        for stream in asked:
            await client.until_over(stream)
    assert [(stream.status, json.loads(stream.body)["target"]) for stream in asked] == [(200, "/v1/models"), (200, "/chat")]
    assert sorted((one.method, one.version, one.all("host"), one.body) for one in pod.seen) == [
        ("GET", "HTTP/1.1", ["edge"], b""),
        ("POST", "HTTP/1.1", ["edge"], b"{}"),
    ]


async def test_h2c_passes_a_stream_on_as_it_comes(edge: RunningEdge, pod: RawPod) -> None:
    """The beginning of an answer is there before its end is made."""
    pod.pause.clear()
    async with h2_connection(edge.port) as client:
        stream = client.request(1, _headers("POST", "/chat"), b'{"stream": true}')
        await client.until(lambda: stream.body)
        assert not stream.ended
        pod.pause.set()
        await client.until_over(stream)
        assert json.loads(stream.body)["target"] == "/chat"


@pytest.mark.parametrize("case", ANSWERED)
async def test_h2c_error_has_openai_body(edge: RunningEdge, pod: RawPod, case: str) -> None:
    """What could be read as a request gets the same errors as over HTTP/1.1, and the connection goes on."""
    headers, body, status, code = ANSWERED[case]
    async with h2_connection(edge.port) as client:
        stream = client.request(1, headers, body)
        await client.until_over(stream)
        assert (stream.status, json.loads(stream.body)["error"]["code"]) == (status, code)
        assert not pod.seen
        await client.until_over(other := client.request(3, _headers()))
        assert other.status == 200


async def test_h2c_large_body_is_refused_before_it_comes(edge: RunningEdge, pod: RawPod) -> None:
    """A body announced as too large gets its 413 while the client has sent nothing of it."""
    async with h2_connection(edge.port) as client:
        stream = client.request(1, _headers("POST", "/chat", content_length="999999999"), is_open=True)
        await client.until_over(stream)
    assert (stream.status, json.loads(stream.body)["error"]["code"]) == (413, "request_too_large")
    assert not pod.seen


@pytest.mark.parametrize("case", RESET)
async def test_h2c_malformed_request_ends_alone(edge: RunningEdge, pod: RawPod, case: str) -> None:
    """What is no request is reset, reaches no pod, and breaks nothing beside it: a connection often carries several people's requests."""
    pod.pause.clear()
    headers, body = RESET[case]
    async with h2_connection(edge.port) as client:
        other = client.request(1, _headers())
        await client.until(lambda: other.body)
        stream = client.request(3, headers, body)
        await client.until_over(stream)
        pod.pause.set()
        await client.until_over(other)
    assert (stream.status, stream.reset is not None) == (0, True)
    assert (other.status, other.reset) == (200, None)
    assert [request.target for request in pod.seen] == ["/v1/models"]
    assert not pod.malformed


async def test_h2c_streams_at_a_time_are_limited(edge: RunningEdge, pod: RawPod) -> None:
    """256 requests go on at a time over one connection, as is announced; a client that begins one more loses the connection."""
    pod.pause.clear()
    async with h2_connection(edge.port) as client, h2_connection(edge.port) as greedy:
        await client.until(lambda: client.settings)
        assert client.settings[3] == 256
        held = _headers("POST", "/chat")  # a page would be given up after 10 s, which makes room
        asked = {one: [one.request(2 * number + 1, held) for number in range(256)] for one in (client, greedy)}
        for one, streams in asked.items():
            await one.until(partial(_all_begun, streams))
        greedy.request(513, _headers())
        await greedy.until(lambda: greedy.closed)
        pod.pause.set()
        await client.until(lambda: all(stream.ended for stream in asked[client]))
        assert {stream.status for stream in asked[client]} == {200}
        await client.until_over(more := client.request(513, _headers()))
        assert more.status == 200


@pytest.mark.parametrize("case", FLOODS)
async def test_h2c_flood_ends_its_connection_only(edge: RunningEdge, pod: RawPod, case: str) -> None:
    """A client that makes work for nothing is cut off; few of its requests reach a pod; others are served before and after."""
    async with h2_connection(edge.port) as neighbour, h2_connection(edge.port) as client:
        await neighbour.until_over(neighbour.request(1, _headers()))
        number = 0
        while not client.closed:
            assert number < 1_000_000, "the edge takes any number of them"
            FLOODS[case](client, number)
            number += 1
            if number % 50 == 0:
                await client.breathe()
        assert len(pod.seen) < 1000
        await neighbour.until_over(after := neighbour.request(3, _headers()))
        assert after.status == 200
