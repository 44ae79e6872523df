"""What nobody should send, sent through Envoy and to a pod directly: each gets its 4xx in OpenAI's shape, and leaves nothing behind."""

from __future__ import annotations

import io
import json
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp
import psutil
import pytest

from tests.running import running_pods, until
from tests.stack.harness import RunningEdge, running_edge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager

    from tests.running import RunningPods

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
HELLO = b'{"role": "user", "content": "Hello!"}'
MEBIBYTE = 1 << 20


@dataclass
class Case:
    """A request and what it must be answered."""

    name: str
    status: int
    code: str
    body: bytes = b""
    method: str = "POST"
    path: str = CHAT
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    param: str | None = None
    says: str = ""


def chat(rest: str, messages: bytes = HELLO) -> bytes:
    """A chat body with more fields."""
    return b'{"messages": [' + messages + b"]" + (", " + rest if rest else "").encode() + b"}"


# A fake engine's context less the prompt `user: Hello!` and `assistant:`, four bytes a token.
GREATEST = "max_tokens must be from 1 to 4090 (the context is 4096 tokens and the prompt has 6)"

CASES = [
    Case("empty body", 400, "invalid_json"),
    Case("not JSON", 400, "invalid_json", b"hello"),
    Case("half of JSON", 400, "invalid_json", b'{"messages": [{"role"'),
    Case("a list", 400, "invalid_value", b"[]"),
    Case("a number", 400, "invalid_value", b"17"),
    Case("not UTF-8", 400, "invalid_json", b'{"messages": "\xff\xfe"}'),
    Case("NaN", 400, "invalid_json", chat('"temperature": NaN')),
    Case("Infinity", 400, "invalid_json", chat('"top_p": Infinity')),
    Case("a lone surrogate", 400, "invalid_json", chat("", b'{"role": "user", "content": "\\ud800"}')),
    Case("nested too deep", 400, "invalid_json", b"[" * 200_000),
    Case("no messages", 400, "missing_required_parameter", b"{}", param="messages"),
    Case("empty messages", 400, "invalid_value", b'{"messages": []}', param="messages"),
    Case("messages of the wrong type", 400, "invalid_value", b'{"messages": "Hello"}', param="messages"),
    Case("unknown role", 400, "invalid_value", chat("", HELLO + b', {"role": "robot", "content": "x"}'), param="messages[1].role"),
    Case("content of the wrong type", 400, "invalid_value", chat("", b'{"role": "user", "content": 5}'), param="messages[0].content"),
    Case("an image", 400, "unsupported_parameter", chat("", b'{"role": "user", "content": [{"type": "image_url"}]}')),
    Case("temperature too high", 400, "invalid_value", chat('"temperature": 2.1'), param="temperature"),
    Case("temperature as text", 400, "invalid_value", chat('"temperature": "hot"'), param="temperature"),
    Case("a huge number", 400, "invalid_value", chat('"max_tokens": 1' + "0" * 400), param="max_tokens", says=GREATEST),
    Case("a negative number", 400, "invalid_value", chat('"max_tokens": -1'), param="max_tokens", says=GREATEST),
    Case("zero tokens", 400, "invalid_value", chat('"max_tokens": 0'), param="max_tokens", says=GREATEST),
    Case("more tokens than the context", 400, "invalid_value", chat('"max_tokens": 100000'), param="max_tokens", says=GREATEST),
    Case("a boolean for a number", 400, "invalid_value", chat('"seed": true'), param="seed"),
    Case("five stop strings", 400, "invalid_value", chat('"stop": ["a", "b", "c", "d", "e"]'), param="stop"),
    Case("a misspelt parameter", 400, "unknown_parameter", chat('"temprature": 1'), param="temprature"),
    Case("a parameter of a later day", 400, "unsupported_parameter", chat('"n": 2'), param="n"),
    Case("another model", 404, "model_not_found", chat('"model": "gpt-4o"'), param="model"),
    Case(
        "a prompt beyond the context", 400, "context_length_exceeded", chat("", b'{"role": "user", "content": "' + b"x" * 200_000 + b'"}')
    ),
    Case("10 000 messages", 400, "context_length_exceeded", chat("", b", ".join([HELLO] * 10_000))),
    Case("10 MB", 413, "request_too_large", chat("", b'{"role": "user", "content": "' + b"x" * 10 * MEBIBYTE + b'"}')),
    Case("a prompt of numbers that are no tokens", 400, "invalid_value", b'{"prompt": [-1]}', path="/v1/completions"),
    Case("no prompt", 400, "missing_required_parameter", b"{}", path="/v1/completions", param="prompt"),
    Case("no message", 400, "missing_required_parameter", b"{}", path="/chat", param="message"),
    Case("form data", 415, "unsupported_media_type", b"a=b", headers={"Content-Type": "application/x-www-form-urlencoded"}),
    Case("compressed", 415, "unsupported_media_type", b"\x1f\x8b", headers=JSON | {"Content-Encoding": "gzip"}),
    Case("wrong method", 405, "method_not_allowed", method="GET"),
    Case("wrong method with a body", 405, "method_not_allowed", b"{}", method="DELETE", path="/v1/models"),
    Case("wrong path", 404, "not_found", b"{}", path="/v1/chat"),
    Case("no such model", 404, "model_not_found", method="GET", path="/v1/models/nobody/else"),
]


@pytest.fixture(scope="module")
def pods() -> Iterator[RunningPods]:
    """Two pods of the fake engine."""
    with running_pods(2) as pods:
        yield pods


async def check(session: aiohttp.ClientSession, url: str, case: Case) -> None:
    """Sends a case and compares."""
    async with session.request(case.method, url + case.path, data=io.BytesIO(case.body), headers=case.headers) as response:
        raw = await response.read()
    seen = f"{case.name}: {response.status} {raw[:300]!r}"
    assert response.status == case.status, seen
    error = json.loads(raw)["error"]
    assert set(error) == {"message", "type", "param", "code"}, seen
    assert error["code"] == case.code, seen
    assert error["message"], seen
    if case.param:
        assert error["param"] == case.param, seen
        assert case.param in error["message"], seen
    assert case.says in error["message"], seen
    if case.status == 405:
        assert response.headers["Allow"], seen
    assert response.headers["x-request-id"], seen
    assert response.headers["x-convoy-pod"], seen


async def test_each_gets_its_answer_through_envoy(pods: RunningPods) -> None:
    """The table, through Envoy."""
    async with running_edge(pods=pods.entries) as edge:
        await edge.until_healthy("engine-1", "engine-2")
        for case in CASES:
            await check(edge.session, edge.url, case)


async def test_each_gets_its_answer_directly_and_leaves_nothing_behind(pods: RunningPods) -> None:
    """The table at a pod, again and again: no task, file or memory is kept, and the pod still answers."""
    process = psutil.Process(pods.entries[0]["pid"])
    async with aiohttp.ClientSession() as session:
        for case in CASES:
            await check(session, pods.url, case)
    before = (process.num_fds(), process.memory_info().rss)
    for _ in range(3):
        async with aiohttp.ClientSession() as session:
            for case in CASES:
                await check(session, pods.url, case)
    until(lambda: process.num_fds() <= before[0], lambda: f"{process.num_fds()} files are open, {before[0]} were")
    assert process.memory_info().rss < before[1] + 32 * MEBIBYTE
    async with aiohttp.ClientSession() as session, session.get(pods.url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    assert 'llm_requests_in_progress{model="demo"} 0.0' in lines
    assert 'llm_slots_in_use{model="demo"} 0.0' in lines


def raw(port: int, *pieces: bytes, close: bool = False) -> bytes:
    """Sends bytes over a connection and gives what comes back; with `close`, leaves at once instead."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        for piece in pieces:
            connection.sendall(piece)
        if close:
            return b""
        received = b""
        while data := connection.recv(65536):
            received += data
        return received


HALF = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n" + b'{"messages"'


async def test_half_a_request_and_a_slow_body_leave_nothing_behind() -> None:
    """A client that goes in the middle of its body is forgotten; one that never sends the rest is 408."""
    with running_pods(1) as pods:
        port = pods.entries[0]["port"]
        process = psutil.Process(pods.entries[0]["pid"])
        async with edge_with_short_body_limit(pods) as edge:
            await edge.until_healthy("engine-1")
            before = process.num_fds()
            for _ in range(20):
                raw(port, HALF, close=True)
                raw(edge.port, HALF, close=True)
            assert raw(edge.port, HALF).startswith(b"HTTP/1.1 408 ")
            until(lambda: process.num_fds() <= before + 1, lambda: f"{process.num_fds()} files are open, {before} were")
            async with edge.session.get(edge.url + "/v1/models") as response:
                assert response.status == 200


def edge_with_short_body_limit(pods: RunningPods) -> AbstractAsyncContextManager[RunningEdge]:
    """An edge that waits one second for a body instead of a minute."""
    return running_edge(pods=pods.entries, edit={"envoy.yaml": {"request_timeout: 60s": "request_timeout: 1s"}})


@pytest.mark.parametrize(
    "line", [b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01"]
)
def test_a_pod_answers_what_is_not_http_in_the_same_shape(pods: RunningPods, line: bytes) -> None:
    """What is no HTTP is 400 `bad_request` with the error body, from a pod as from Envoy."""
    answer = raw(pods.entries[0]["port"], line, b"\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head[:13] in {b"HTTP/1.0 400 ", b"HTTP/1.1 400 "}, answer
    assert json.loads(body)["error"]["code"] == "bad_request"
