"""What Envoy answers itself: raw bytes in, OpenAI's error body and the design's headers out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.stack.harness import running_edge
from tests.stack.raw_http import exchange
from tests.stack.stub_pod import StubPod

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.stack.harness import RunningEdge

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]

MAX_BODY_BYTES = 65_536
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: edge\r\ncontent-type: application/json\r\n"
GET = b"GET /v1/models HTTP/1.1\r\nhost: edge\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"

CASES: dict[str, tuple[bytes, int, str]] = {
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400, "bad_request"),
    "no host": (b"GET /v1/models HTTP/1.1\r\n\r\n", 400, "bad_request"),
    "two hosts": (GET + b"host: other\r\n\r\n", 400, "bad_request"),
    "unknown method": (b"FOO /v1/models HTTP/1.1\r\nhost: edge\r\n\r\n", 400, "bad_request"),
    "space before colon": (GET + b"x-a : 1\r\n\r\n", 400, "bad_request"),
    "underscore header": (GET + b"x_client_id: root\r\n\r\n", 400, "bad_request"),
    "NUL in header": (GET + b"x-a: a\x00b\r\n\r\n", 400, "bad_request"),
    "two lengths": (POST + b"content-length: 1\r\ncontent-length: 2\r\n\r\n{}", 400, "bad_request"),
    "negative length": (POST + b"content-length: -1\r\n\r\n", 400, "bad_request"),
    "length and chunks": (POST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "bad_request"),
    "bad chunk size": (CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n", 400, "bad_request"),
    "escaped slash": (b"GET /health%2Fz HTTP/1.1\r\nhost: edge\r\n\r\n", 400, "bad_request"),
    "escaped backslash": (b"GET /docs%5cx HTTP/1.1\r\nhost: edge\r\n\r\n", 400, "bad_request"),
    "unknown path": (b"GET /nowhere HTTP/1.1\r\nhost: edge\r\n\r\n", 404, "not_found"),
    "inner path of a pod": (b"POST /drain HTTP/1.1\r\nhost: edge\r\ncontent-length: 0\r\n\r\n", 404, "not_found"),
    "path above the root": (b"GET /v1/models/../../drain HTTP/1.1\r\nhost: edge\r\n\r\n", 404, "not_found"),
    "shutdown by the window": (b"GET /envoy/quitquitquit HTTP/1.1\r\nhost: edge\r\n\r\n", 404, "not_found"),
    "dots in the window": (b"GET /envoy/stats/../quitquitquit HTTP/1.1\r\nhost: edge\r\n\r\n", 404, "not_found"),
    "write to the window": (b"POST /envoy/stats HTTP/1.1\r\nhost: edge\r\ncontent-length: 0\r\n\r\n", 405, "method_not_allowed"),
    "slow headers": (b"GET /v1/models HTTP/1.1\r\nhost: ed", 408, "request_timeout"),
    "slow body": (POST + b"content-length: 100\r\n\r\n{", 408, "request_timeout"),
    "large body": (POST + b"content-length: 65537\r\n\r\n" + b"x" * (MAX_BODY_BYTES + 1), 413, "request_too_large"),
    "large body announced": (POST + b"content-length: 999999999999\r\n\r\n", 413, "request_too_large"),
    "large chunked body": (CHUNKED + b"10001\r\n" + b"x" * (MAX_BODY_BYTES + 1) + b"\r\n0\r\n\r\n", 413, "request_too_large"),
    "large header": (GET + b"x-a: " + b"a" * 40_000 + b"\r\n\r\n", 431, "headers_too_large"),
    "many headers": (GET + b"".join(b"x-%d: 1\r\n" % number for number in range(80)) + b"\r\n", 431, "headers_too_large"),
    "long path": (b"GET /v1/models/" + b"a" * 40_000 + b" HTTP/1.1\r\nhost: edge\r\n\r\n", 431, "headers_too_large"),
    "unknown coding": (POST + b"transfer-encoding: xchunked\r\n\r\n", 501, "not_implemented"),
    "websocket": (GET + b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\r\n", 403, "forbidden"),
}


UNTRACED = {
    *("garbage", "no host", "unknown method", "space before colon", "underscore header", "NUL in header", "two lengths", "negative length"),
    *("length and chunks", "slow headers", "large header", "many headers", "long path", "unknown coding", "websocket"),
}
"""What is refused while its headers are read, before a trace could begin."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge() -> AsyncIterator[RunningEdge]:
    """One pod behind an edge with a short patience and a small body limit."""
    pod = await StubPod("engine-1").start()
    edit = {"envoy.yaml": {"request_headers_timeout: 10s": "request_headers_timeout: 1s", "request_timeout: 60s": "request_timeout: 1s"}}
    try:
        async with running_edge([pod], edit=edit, max_body_bytes=MAX_BODY_BYTES) as running:
            yield running
    finally:
        await pod.stop()


@pytest.mark.parametrize("case", CASES)
async def test_edge_error_has_openai_body_and_headers(edge: RunningEdge, case: str) -> None:
    """Each mistake gets its status and code, all four keys of OpenAI's error, a request id, the pod `edge` and no attempts."""
    data, status, code = CASES[case]
    answer = await exchange(edge.port, data)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (status, code, None)
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["message"]
    assert "local_reply" not in answer.error["message"].lower()
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-convoy-pod"] == "edge"
    assert answer.headers["x-convoy-attempts"] == "0"
    assert answer.headers["x-request-id"]
    assert (len(answer.headers.get("x-trace-id", "")) == 32) == (case not in UNTRACED), answer.headers
    assert re.fullmatch(r"total;dur=\d+", answer.headers["server-timing"])
    assert ("allow" in answer.headers) == (status == 405)


async def test_edge_body_at_the_limit_is_taken(edge: RunningEdge) -> None:
    """A body of exactly MAX_BODY_BYTES reaches a pod whole; the limit is neither one too low nor the buffer's."""
    async with edge.session.post(f"{edge.url}/chat", data=b"x" * MAX_BODY_BYTES) as response:
        assert (response.status, (await response.json())["bytes"]) == (200, MAX_BODY_BYTES)


async def test_edge_error_keeps_the_callers_request_id(edge: RunningEdge) -> None:
    """An error of a request that could be read carries the id that its caller gave it."""
    answer = await exchange(edge.port, b"GET /nowhere HTTP/1.1\r\nhost: edge\r\nx-request-id: mine-7\r\n\r\n")
    assert (answer.status, answer.headers["x-request-id"]) == (404, "mine-7")
