"""ENGINE=remote: what passes, what is counted, and that the real servers behind it are as good as asked directly."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import openai
import pytest

from bench.engines import api_server
from tests.contract.asking import CHAT, metric, until_metric
from tests.engines.remote_upstream import DONE, FRAME, KEY, MESSAGE, QUESTION, forwarding, post, refused, until, upstream_server
from tests.running import running_pods, skip_without_vllm
from tests.stack.harness import running_edge

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engines.remote_upstream import Upstream

pytestmark = [pytest.mark.stack, pytest.mark.asyncio]


async def test_bytes_pass_as_they_are() -> None:
    """Streams and JSON, with fields that only the upstream knows, its path kept, the key sent and the model named."""
    async with upstream_server() as upstream, forwarding(upstream.url) as pods:
        status, headers, body = await post(pods.url + CHAT, **MESSAGE, stream=True, tools=[{"odd": 1}])
        assert (status, body) == (200, b"".join(upstream.frames))
        assert headers["Content-Type"].startswith("text/event-stream")
        assert "x-convoy-seed" not in headers  # the upstream draws
        path, sent, asked = upstream.seen[-1]
        assert path == "/some/prefix/v1/chat/completions"
        assert sent["Authorization"] == f"Bearer {KEY}"
        assert asked == {"model": "big", "messages": QUESTION, "stream": True, "tools": [{"odd": 1}]}
        assert (await post(pods.url + CHAT, **MESSAGE, model="big"))[2] == upstream.body
        await post(pods.url + "/chat", message="Hi", system="Be brief", max_tokens=5)
        assert upstream.seen[-1][2]["messages"] == [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]
        await post(pods.url + "/v1/completions", prompt="Hi")
        assert upstream.seen[-1][0] == "/some/prefix/v1/completions"
        assert await refused(pods.url + CHAT, **MESSAGE, model="huge") == (404, "model_not_found")
        async with aiohttp.ClientSession() as session:
            await until_metric(session, pods.url, "llm_generation_tokens_total", 2 + 7 * 3)


async def test_streams_are_counted_and_end_where_they_say() -> None:
    """By frames, and exactly where the usage is told; a text that quotes the end's mark does not end it."""
    quoting = b'data: {"choices":[{"delta":{"content":"data: [DONE]"}}]}\n\n'
    counted = '"prompt_tokens": 9, "completion_tokens": 40, "prompt_tokens_details": {"cached_tokens": 8}'
    usage = f'data: {{"choices":[],"usage": {{{counted}, "total_tokens": 49}}}}\n\n'.encode()
    async with upstream_server() as upstream, forwarding(upstream.url) as pods, aiohttp.ClientSession() as session:
        upstream.pause_seconds, expected = 0.02, 0
        for frames, num_tokens in (([quoting, FRAME, DONE], 2), ([FRAME, quoting, usage, DONE], 40), ([FRAME * 3 + DONE], 3)):
            upstream.frames = frames
            assert (await post(pods.url + CHAT, **MESSAGE, stream=True))[2] == b"".join(frames)
            expected += num_tokens
            await until_metric(session, pods.url, "llm_generation_tokens_total", expected)
        await until_metric(session, pods.url, "llm_cached_prompt_tokens_total", 8)
        before = await metric(session, pods.url, "llm_prompt_tokens_total")
        assert msgspec.json.decode((await post(pods.url + CHAT, **MESSAGE))[2])["usage"]["prompt_tokens"] == 3
        await until_metric(session, pods.url, "llm_prompt_tokens_total", before + 3)
        upstream.frames = [FRAME, usage, DONE]
        await post(pods.url + CHAT, **MESSAGE, stream=True)
        await until_metric(session, pods.url, "llm_prompt_tokens_total", before + 3 + 9)


async def test_a_connection_is_used_again() -> None:
    """Twenty answers, streams and whole ones, over the one that the start has opened."""
    async with upstream_server() as upstream, forwarding(upstream.url) as pods:
        upstream.pause_seconds = 0.01
        for number in range(20):
            await post(pods.url + CHAT, **MESSAGE, stream=bool(number % 2))
        assert upstream.num_asked == 21
        assert len(upstream.connections) == 1


async def _leave(upstream: Upstream, url: str, *, stream: bool, begins: bool) -> None:
    """Asks, leaves, and waits until the upstream has noticed: the promised half second, with three times its margin."""
    upstream.left.clear()
    num_asked = upstream.num_asked
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.post(url, json=MESSAGE | {"stream": stream}))
        if begins:
            response = await asking
            await response.content.readany()
        while upstream.num_asked == num_asked:  # noqa: ASYNC110 - it is another program's stand-in, which tells nobody
            await asyncio.sleep(0.005)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
    await asyncio.wait_for(upstream.left.wait(), 1.5)


async def test_who_leaves_is_gone_upstream() -> None:
    """Within a stream, before its first byte, and while a whole answer is waited for; the slots are free."""
    async with upstream_server() as upstream, forwarding(upstream.url) as pods, aiohttp.ClientSession() as session:
        upstream.is_endless, upstream.frames = True, []
        await _leave(upstream, pods.url + CHAT, stream=True, begins=True)
        upstream.is_silent = True
        await _leave(upstream, pods.url + CHAT, stream=True, begins=False)
        await _leave(upstream, pods.url + CHAT, stream=False, begins=False)
        await until_metric(session, pods.url, "llm_slots_in_use", 0)


def certificate(folder: Path) -> tuple[str, str]:
    """Key and certificate of its own for localhost."""
    key, certified = str(folder / "key.pem"), str(folder / "certificate.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", key]
    subprocess.run([*command, "-out", certified, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    return key, certified


async def test_a_certificate_of_its_own(tmp_path: Path) -> None:
    """UPSTREAM_CA_FILE makes it good, and who leaves is gone there, too; without it, or by another name, the pod waits and says why."""
    key, certified = certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certified, key)
    async with upstream_server(tls) as upstream:
        async with forwarding(upstream.url, upstream_ca_file=certified) as pods:
            assert (await post(pods.url + CHAT, **MESSAGE))[0] == 200
            upstream.is_endless, upstream.frames = True, []
            await _leave(upstream, pods.url + CHAT, stream=True, begins=True)
        async with forwarding(upstream.url, is_ready=False) as pods:
            await until(lambda said: "its certificate is not trusted; UPSTREAM_CA_FILE" in said.get("progress", ""), pods)
        async with forwarding(upstream.url.replace("localhost", "127.0.0.1"), is_ready=False, upstream_ca_file=certified) as pods:
            await until(lambda said: "its certificate is for another name" in said.get("progress", ""), pods)


# What differs from answer to answer: ids, times, durations; and where a stream's text is cut, which is as its reader comes to it.
_OWN = re.compile(rb'"id":"[^"]+"|"created":\d+|dur=[0-9.]+')
_CUT = re.compile(
    rb'"\},"logprobs":null,"finish_reason":null\}\](,"usage":null)?\}\n\ndata: [^\n]*?"content":"|'
    rb'","index":0,"logprobs":null,"finish_reason":null\}\](,"usage":null)?\}\n\ndata: [^\n]*?"text":"'
)


def plain(answer: bytes) -> bytes:
    """What is the same in all answers to a question."""
    return _CUT.sub(b"", _OWN.sub(b"", answer))


async def test_our_own_pods_behind_it_answer_as_if_asked_directly() -> None:
    """JSON and streams byte for byte, mistakes as they are told, and OpenAI's package sees no difference."""
    with running_pods(1) as behind:
        async with forwarding(behind.url + "/v1", model_name="demo") as pods:
            for path, body in ((CHAT, MESSAGE), ("/v1/completions", {"prompt": "Hi"}), ("/chat", {"message": "Hi"})):
                for more in ({}, {"stream": True, "max_tokens": 30}, {"stream": True, "stream_options": {"include_usage": True}}):
                    direct, passed = [await post(one.url + path, **body, **more) for one in (behind, pods)]
                    assert direct[0] == passed[0] == 200
                    assert plain(passed[2]) == plain(direct[2])
            wrong = {"messages": QUESTION, "temperature": 5, "model": "demo"}
            direct, passed = [await post(one.url + CHAT, **wrong) for one in (behind, pods)]
            assert (passed[0], passed[2]) == (400, direct[2])
            async with openai.AsyncOpenAI(base_url=pods.url + "/v1", api_key="none", max_retries=0) as client:
                asked: Any = QUESTION
                stream = await client.chat.completions.create(model="demo", messages=asked, stream=True)
                assert "fake engine" in "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
                assert [model.id async for model in client.models.list()] == ["demo"]


async def test_a_full_upstream_says_when_to_return() -> None:
    """One of our pods with one slot and no queue: its 429 and its Retry-After come through, and then the one who holds the slot ends."""
    with running_pods(1, max_concurrent_requests=1, queue_capacity=0, fake_tokens_per_second=20) as behind:
        async with forwarding(behind.url + "/v1", model_name="demo") as pods, aiohttp.ClientSession() as session:
            async with session.post(behind.url + CHAT, json=MESSAGE | {"stream": True, "max_tokens": 400}) as holder:
                await holder.content.readany()
                status, headers, body = await post(pods.url + CHAT, **MESSAGE)
            assert (status, msgspec.json.decode(body)["error"]["code"]) == (429, "upstream_busy")
            assert int(headers["Retry-After"]) >= 1
            await until_metric(session, behind.url, "llm_slots_in_use", 0)
            assert (await post(pods.url + CHAT, **MESSAGE))[0] == 200


@pytest.mark.timeout(300)  # above bench/engines.py's own limit for the server's start, whose message has vLLM's log
async def test_the_official_package_behind_envoy_before_vllms_own_server() -> None:
    """Two real servers in a row: whole, streamed, counted, cancelled, and a mistake that only the upstream can see."""
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
                assert whole.usage
                # The stream was counted by its frames, as nobody asked for its usage.
                await until_metric(edge.session, pods.url, "llm_generation_tokens_total", 2 * whole.usage.completion_tokens)
                endless = {"messages": asked, "stream": True, "ignore_eos": True, "max_tokens": 3000}
                async with edge.session.post(edge.url + CHAT, json=endless) as response:
                    await response.content.readany()
                await until_metric(edge.session, pods.url, "llm_slots_in_use", 0)
                await until_metric(edge.session, url.removesuffix("/v1"), "vllm:num_requests_running", 0)
                with pytest.raises(openai.BadRequestError, match=r"max_tokens|context"):
                    await client.chat.completions.create(model="big", messages=asked, max_tokens=1_000_000)
    assert os.environ.get("UPSTREAM_API_KEY") is None
