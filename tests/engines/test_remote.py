"""ENGINE=remote before upstreams that behave, refuse, break and vanish."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import openai
import psutil
import pytest
from aiohttp import web

from bench.engines import api_server
from tests.contract.asking import CHAT, until_metric
from tests.running import DEADLINE_SECONDS, RunningPods, running_pods, skip_without_vllm
from tests.stack.harness import running_edge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.stack, pytest.mark.asyncio]
KEY = "upstream-key-that-nobody-may-see"
FRAME = b'data: {"choices":[{"index":0,"delta":{"content":"\xc3\xa9"}}],"odd_field":[1, 2]}\n\n'
QUESTION = [{"role": "user", "content": "Hello!"}]


@dataclass
class Upstream:
    """A server that answers as it is told, and remembers."""

    url: str = ""
    status: int = 200
    body: bytes = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":7}}'
    headers: dict[str, str] = field(default_factory=dict)
    frames: list[bytes] = field(default_factory=lambda: [FRAME, FRAME, b"data: [DONE]\n\n"])
    is_endless: bool = False
    seen: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def models(self, request: web.Request) -> web.Response:
        """GET …/models."""
        self.seen.append((request.path, dict(request.headers), None))
        return web.json_response({"data": [{"id": "big"}, {"id": "small"}]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """POST …: JSON or a stream."""
        asked = msgspec.json.decode(await request.read())
        self.seen.append((request.path, dict(request.headers), asked))
        if self.status != 200 or not asked.get("stream"):
            return web.Response(status=self.status, body=self.body, headers=self.headers, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for frame in self.frames:
                await response.write(frame)
            while self.is_endless:
                await response.write(FRAME)
                await asyncio.sleep(0.01)  # the pace of its tokens
        except (ConnectionError, asyncio.CancelledError):
            self.left.set()
            raise
        return response


@contextlib.asynccontextmanager
async def upstream_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    """It listens on a free port, with a path before /v1."""
    upstream = Upstream()
    app = web.Application()
    app.add_routes([web.get("/some/prefix/v1/models", upstream.models), web.post("/some/prefix/v1/{rest:.*}", upstream.answer)])
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    upstream.url = f"http{'s' if tls else ''}://localhost:{port}/some/prefix/v1"
    try:
        yield upstream
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def forwarding(upstream_url: str, *, is_ready: bool = True, **settings: object) -> AsyncIterator[RunningPods]:
    """A remote pod before it; starting it must not stop the upstream, which may live on this event loop."""
    wanted = {"engine": "remote", "upstream_url": upstream_url, "upstream_api_key": KEY, "model_name": "big", "pods": 1} | settings
    with running_pods(0, **wanted) as pods:
        if is_ready:
            await asyncio.to_thread(pods.until_ready, 1)
        yield pods


async def post(url: str, **body: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        return response.status, dict(response.headers), await response.read()


async def test_bytes_pass_as_they_are() -> None:
    """Streams and JSON, with fields that only the upstream knows, its path kept, the key sent and the model named."""
    async with upstream_server() as upstream, forwarding(upstream.url) as pods:
        status, headers, body = await post(pods.url + CHAT, messages=QUESTION, stream=True, tools=[{"odd": 1}])
        assert (status, body) == (200, b"".join(upstream.frames))
        assert headers["Content-Type"].startswith("text/event-stream")
        path, sent, asked = upstream.seen[-1]
        assert path == "/some/prefix/v1/chat/completions"
        assert sent["Authorization"] == f"Bearer {KEY}"
        assert asked == {"model": "big", "messages": QUESTION, "stream": True, "tools": [{"odd": 1}]}
        assert (await post(pods.url + CHAT, messages=QUESTION, model="big"))[2] == upstream.body
        await post(pods.url + "/chat", message="Hi", system="Be brief", max_tokens=5)
        assert upstream.seen[-1][2]["messages"] == [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]
        await post(pods.url + "/v1/completions", prompt="Hi")
        assert upstream.seen[-1][0] == "/some/prefix/v1/completions"
        assert (await post(pods.url + CHAT, messages=QUESTION, model="huge"))[0] == 404
        async with aiohttp.ClientSession() as session:
            await until_metric(session, pods.url, "llm_generation_tokens_total", 2 + 7 * 3)


async def test_the_key_is_nowhere() -> None:
    """Neither in the log nor in a file of the state folder nor in a command line."""
    async with upstream_server() as upstream, forwarding(upstream.url) as pods:
        await post(pods.url + CHAT, messages=QUESTION)
        upstream.status = 401
        status, _, body = await post(pods.url + CHAT, messages=QUESTION)
        assert (status, msgspec.json.decode(body)["error"]["code"]) == (502, "upstream_refused_key")
        files = [path for path in pods.state_dir.rglob("*") if path.is_file()]
        assert files
        assert [path for path in files if KEY.encode() in path.read_bytes()] == []
        assert [one.info for one in psutil.process_iter(["cmdline"]) if KEY in " ".join(one.info["cmdline"] or [])] == []


@pytest.mark.parametrize(
    ("status", "headers", "told", "code"),
    [
        (429, {"Retry-After": "7"}, 429, "upstream_busy"),
        (400, {}, 400, "odd_code"),
        (404, {}, 404, "odd_code"),
        (422, {}, 422, "odd_code"),
        (500, {}, 502, "upstream_error"),
        (503, {}, 502, "upstream_error"),
        (403, {}, 502, "upstream_refused_key"),
    ],
)
async def test_its_refusals_are_told(status: int, headers: dict[str, str], told: int, code: str) -> None:
    """With its words where they are for the client; no other pod is asked, for it has the same upstream."""
    async with upstream_server() as upstream, forwarding(upstream.url) as pods:
        upstream.status, upstream.headers = status, headers
        upstream.body = b'{"error":{"message":"odd words","type":"odd_type","param":"messages","code":"odd_code"}}'
        for stream in (False, True):
            found, answered, body = await post(pods.url + CHAT, messages=QUESTION, stream=stream)
            error = msgspec.json.decode(body)["error"]
            assert (found, error["code"]) == (told, code)
            assert answered["x-envoy-ratelimited"] == "true"
            assert answered.get("Retry-After") == headers.get("Retry-After")
            assert status in {401, 403} or "odd words" in error["message"]


async def test_a_stream_that_breaks_off_says_so() -> None:
    """An upstream that ends early ends in an error event, never in a stream that looks whole."""
    async with upstream_server() as upstream, forwarding(upstream.url) as pods:
        upstream.frames = [FRAME]
        status, _, body = await post(pods.url + CHAT, messages=QUESTION, stream=True)
        assert status == 200
        assert body.startswith(FRAME)
        assert b'"engine_error"' in body
        assert b"[DONE]" not in body


async def test_who_leaves_is_gone_upstream() -> None:
    """Within the promised half second, with three times its margin; the slot is free."""
    async with upstream_server() as upstream, forwarding(upstream.url) as pods, aiohttp.ClientSession() as session:
        upstream.is_endless = True
        async with session.post(pods.url + CHAT, json={"messages": QUESTION, "stream": True}) as response:
            await response.content.readany()
        await asyncio.wait_for(upstream.left.wait(), 1.5)
        await until_metric(session, pods.url, "llm_slots_in_use", 0)


async def test_an_upstream_that_comes_and_goes() -> None:
    """Not there: the pod waits for it, and says for what. Gone: each request is told, through Envoy too, and the pod stays in use."""
    async with upstream_server() as gone:
        url = gone.url
    async with forwarding(url, is_ready=False) as pods:
        deadline = asyncio.get_running_loop().time() + DEADLINE_SECONDS
        while "waiting for UPSTREAM_URL" not in str(await asyncio.to_thread(pods.readiness, pods.url) if pods.urls else {}):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)
    async with (
        upstream_server() as upstream,
        forwarding(upstream.url) as pods,
        running_edge(pod_source=f"file:{pods.state_dir / 'pods.json'}") as edge,
    ):
        await edge.until_healthy("engine-1")
        upstream.status = 500
        for _ in range(12):  # more than what ejects a pod that breaks
            status, _, body = await post(edge.url + CHAT, messages=QUESTION)
            assert (status, msgspec.json.decode(body)["error"]["code"]) == (502, "upstream_error")
        upstream.status = 200
        assert (await post(edge.url + CHAT, messages=QUESTION))[0] == 200


async def test_what_it_does_not_serve_ends_the_start() -> None:
    """With what it serves."""
    async with upstream_server() as upstream, forwarding(upstream.url, is_ready=False, model_name="huge") as pods:
        assert await asyncio.to_thread(pods.process.wait, DEADLINE_SECONDS) == 1
        assert "MODEL_NAME=huge: the upstream does not serve it; it serves big, small" in (pods.state_dir / "pods.json").read_text()


async def test_a_certificate_of_its_own(tmp_path: Path) -> None:
    """UPSTREAM_CA_FILE makes it good; without that the pod waits and says why."""
    files = [str(tmp_path / name) for name in ("key.pem", "certificate.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", files[0]]
    subprocess.run([*command, "-out", files[1], "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)  # noqa: ASYNC221
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(files[1], files[0])
    async with upstream_server(tls) as upstream, forwarding(upstream.url, upstream_ca_file=files[1]) as pods:
        assert (await post(pods.url + CHAT, messages=QUESTION))[0] == 200


async def test_the_official_package_behind_envoy_before_vllms_own_server() -> None:
    """Two real servers in a row: whole, streamed, cancelled, and a mistake that only the upstream can see."""
    skip_without_vllm()
    with api_server("--enforce-eager", f"--api-key={KEY}", "--served-model-name=big") as upstream:
        url = upstream.url.removesuffix("/chat/completions")
        async with forwarding(url) as pods, running_edge(pod_source=f"file:{pods.state_dir / 'pods.json'}") as edge:
            await edge.until_healthy("engine-1")
            async with openai.AsyncOpenAI(base_url=edge.url + "/v1", api_key="none", max_retries=0) as client:
                asked: Any = [{"role": "user", "content": "Tell me about distributed systems."}]
                whole = await client.chat.completions.create(model="big", messages=asked, temperature=0, max_tokens=60, logprobs=True)
                assert "distributed system" in str(whole.choices[0].message.content)
                assert whole.choices[0].logprobs
                stream = await client.chat.completions.create(model="big", messages=asked, temperature=0, max_tokens=60, stream=True)
                text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
                assert text == whole.choices[0].message.content
                with pytest.raises(openai.BadRequestError, match=r"max_tokens|context"):
                    await client.chat.completions.create(model="big", messages=asked, max_tokens=1_000_000)
    assert os.environ.get("UPSTREAM_API_KEY") is None
