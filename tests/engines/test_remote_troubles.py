"""ENGINE=remote before upstreams that refuse, break, fall silent and vanish, and what becomes of the key."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from typing import Any

import aiohttp
import msgspec
import psutil
import pytest

from services.ops import processes
from tests.contract.asking import CHAT, until_metric
from tests.engines.remote_upstream import DONE, FRAME, KEY, MESSAGE, forwarding, post, readiness, refused, until, upstream_server
from tests.running import DEADLINE_SECONDS, running_pods
from tests.stack.convoy import convoy
from tests.stack.harness import running_edge

pytestmark = [pytest.mark.stack, pytest.mark.asyncio]
ODD = b'{"error":{"message":"odd words","type":"odd_type","param":"messages","code":"odd_code"}}'
QUICK: dict[str, Any] = {
    "queue_timeout_seconds": 0.3,
    "keepalive_seconds": 0.5,
    "first_token_timeout_seconds": 0.6,
    "hang_timeout_seconds": 0.9,
    "stall_timeout_seconds": 1,
    "request_timeout_seconds": 3,
}


async def test_its_refusals_are_told() -> None:
    """With its words where they are for the client; the key and redirects are the operator's affair."""
    cases: list[tuple[int, dict[str, str], int, str]] = [
        (429, {"Retry-After": "7"}, 429, "upstream_busy"),
        (400, {}, 400, "odd_code"),
        (404, {}, 404, "odd_code"),
        (413, {}, 413, "odd_code"),
        (422, {}, 422, "odd_code"),
        (500, {}, 502, "upstream_error"),
        (503, {}, 502, "upstream_error"),
        (401, {}, 502, "upstream_refused_key"),
        (403, {}, 502, "upstream_refused_key"),
        (307, {"Location": "http://127.0.0.1:9/elsewhere"}, 502, "upstream_error"),
    ]
    async with upstream_server() as upstream, forwarding(upstream.url) as pods:
        upstream.body = ODD
        for upstream.status, upstream.headers, told, code in cases:
            for stream in (False, True):
                found, answered, body = await post(pods.url + CHAT, **MESSAGE, stream=stream)
                error = msgspec.json.decode(body)["error"]
                assert (found, error["code"]) == (told, code)
                assert answered["x-envoy-ratelimited"] == "true"  # no other pod is asked: it has the same upstream
                assert answered.get("Retry-After") == upstream.headers.get("Retry-After")
                assert ("odd words" in error["message"]) == (upstream.status not in {401, 403, 307})


async def test_what_is_no_answer_is_not_passed_on() -> None:
    """JSON that is none or does not end, a body that was compressed, and JSON where a stream was asked for."""
    async with upstream_server() as upstream, forwarding(upstream.url) as pods:
        upstream.body = b'{"choices":[' + b" " * (65 << 20) + b"]}"
        assert await refused(pods.url + CHAT, **MESSAGE) == (502, "upstream_error")
        upstream.body = b"<html>"
        assert await refused(pods.url + CHAT, **MESSAGE) == (502, "upstream_error")
        upstream.headers = {"Content-Encoding": "gzip"}
        assert await refused(pods.url + CHAT, **MESSAGE, stream=True) == (502, "upstream_error")
        upstream.headers = {"Content-Type": "application/json"}
        assert await refused(pods.url + CHAT, **MESSAGE, stream=True) == (502, "upstream_error")
        upstream.status, upstream.body, upstream.headers = 404, b'{"error":"try pulling it first"}', {}
        assert b"try pulling it first" in (await post(pods.url + CHAT, **MESSAGE))[2]


async def test_a_stream_that_breaks_off_says_so() -> None:
    """In an error event that stands by itself, though the upstream ended in the middle of a frame; never in one that looks whole."""
    async with upstream_server() as upstream, forwarding(upstream.url) as pods:
        upstream.frames = [FRAME, FRAME[:20]]
        status, _, body = await post(pods.url + CHAT, **MESSAGE, stream=True)
        assert status == 200
        assert body.startswith(FRAME + b'data: {"error":')
        assert b'"upstream_error"' in body
        assert b"[DONE]" not in body


async def test_an_upstream_that_is_killed_mid_stream() -> None:
    """One of our own pods, by SIGKILL: the stream ends in an error event at once, then 503, and the pod stays ready."""
    with running_pods(1, fake_tokens_per_second=20) as behind:
        async with forwarding(behind.url + "/v1", model_name="demo") as pods, aiohttp.ClientSession() as session:
            async with session.post(pods.url + CHAT, json=MESSAGE | {"stream": True, "max_tokens": 2000}) as response:
                await response.content.readany()
                behind.process.send_signal(signal.SIGSTOP)  # or it would have a new one in no time
                os.kill(behind.entries[0]["pid"], signal.SIGKILL)
                body = await asyncio.wait_for(response.read(), 5)
            behind.process.send_signal(signal.SIGCONT)
            assert b'"upstream_error"' in body
            assert b"[DONE]" not in body


async def test_a_pause_within_a_frame_is_not_filled() -> None:
    """A frame whose end is late: comments come before it or after it, never inside."""
    async with upstream_server() as upstream, forwarding(upstream.url, **QUICK | {"stall_timeout_seconds": 2}) as pods:
        upstream.frames, upstream.is_silent = [FRAME + FRAME[:20]], True
        body = (await post(pods.url + CHAT, **MESSAGE, stream=True))[2]
        assert body.startswith(FRAME + b": keepalive\n\n")
        assert body.rpartition(b": keepalive\n\n")[2].startswith(b'data: {"error":')
        assert FRAME[:20] not in body.removeprefix(FRAME)


async def test_silence_is_bounded_and_the_pod_stays() -> None:
    """A stream has STALL_TIMEOUT for its first byte, a whole answer REQUEST_TIMEOUT; both are told 504, and nothing starts anew."""
    async with upstream_server() as upstream, forwarding(upstream.url, **QUICK | {"keepalive_seconds": 0.55}) as pods:
        pid = pods.entries[0]["pid"]
        upstream.is_silent, upstream.frames = True, []
        began = time.monotonic()
        whole = asyncio.create_task(refused(pods.url + CHAT, **MESSAGE))
        body = (await post(pods.url + CHAT, **MESSAGE, stream=True))[2]
        assert b'"upstream_timeout"' in body
        assert b"STALL_TIMEOUT_SECONDS=1" in body
        assert 0.9 <= time.monotonic() - began < 2.5  # it looks twenty times within the limit, and counts the first look whole
        assert await whole == (504, "upstream_timeout")
        assert 2.9 <= time.monotonic() - began < 5
        assert (await readiness(pods))["state"] == "ready"
        upstream.is_silent, upstream.frames = False, [FRAME, DONE]
        assert (await post(pods.url + CHAT, **MESSAGE, stream=True))[2] == FRAME + DONE
        assert pods.entries[0]["pid"] == pid


async def test_an_upstream_that_comes_and_goes() -> None:
    """Not there: the pod waits and says for what. It comes: ready. Gone again: 503 each time, and the pod stays ready."""
    async with upstream_server() as gone:
        url = gone.url
    port = int(url.split(":")[2].partition("/")[0])
    async with forwarding(url, is_ready=False) as pods:
        await until(lambda said: "waiting for UPSTREAM_URL: The upstream cannot be reached" in said.get("progress", ""), pods)
        pid = pods.entries[0]["pid"]
        assert await refused(pods.url + CHAT, **MESSAGE) == (503, "not_ready")
        async with upstream_server(port=port) as upstream:
            upstream.status = 503  # its model is not loaded yet
            await until(lambda said: said.get("state") == "warming" and "waiting for UPSTREAM_URL" in said["progress"], pods)
            upstream.status = 200
            await until(lambda said: said.get("state") == "ready", pods)
        for stream in (False, True):
            assert await refused(pods.url + CHAT, **MESSAGE, stream=stream) == (503, "upstream_unreachable")
        assert (await readiness(pods))["state"] == "ready"
        assert pods.entries[0]["pid"] == pid


async def test_through_envoy_nothing_is_tried_twice_and_no_pod_is_put_out_of_use() -> None:
    """Two pods, one upstream: each request reaches it once, whatever it answers, more often than what ejects a pod that breaks."""
    async with (
        upstream_server() as upstream,
        forwarding(upstream.url, pods=2) as pods,
        running_edge(pod_source=f"file:{pods.state_dir / 'pods.json'}") as edge,
    ):
        await edge.until_healthy("engine-1", "engine-2")
        before = upstream.num_asked
        for upstream.status in (500, 429, 401):
            for _ in range(8):
                assert (await post(edge.url + CHAT, **MESSAGE))[1]["x-convoy-attempts"] == "1"
        assert upstream.num_asked == before + 3 * 8
        upstream.status = 200
        assert (await post(edge.url + CHAT, **MESSAGE))[0] == 200
        assert await edge.healthy_pods() == {"engine-1", "engine-2"}


async def test_what_it_does_not_serve_ends_the_start() -> None:
    """With what it serves; so does a path that is not there."""
    async with upstream_server() as upstream:
        for url, model, told in (
            (upstream.url, "huge", "MODEL_NAME=huge: the upstream does not serve it; it serves big, small"),
            (upstream.url.removesuffix("/v1"), "big", "the upstream has no /models below UPSTREAM_URL"),
        ):
            async with forwarding(url, is_ready=False, model_name=model) as pods:
                assert await asyncio.to_thread(pods.process.wait, DEADLINE_SECONDS) == 1
                assert told.lower() in (pods.state_dir / "pods.json").read_text().lower()


async def test_the_key_is_nowhere_but_with_the_pods() -> None:
    """`convoy up`: in no file, no command line, no output, and in the environment of no process but the runner's and its pods'."""
    async with upstream_server() as upstream:
        env = {"ENGINE": "remote", "UPSTREAM_URL": upstream.url, "UPSTREAM_API_KEY": KEY, "MODEL_NAME": "big", "PODS": "1"}
        with convoy(**env, LOG_LEVEL="debug", MAKEFLAGS=f" -- UPSTREAM_API_KEY={KEY}") as command:
            started = await asyncio.to_thread(command.run, "up", "--detach")
            assert started.returncode == 0, started.stdout + started.stderr
            url = msgspec.json.decode((command.state_dir / "run.json").read_bytes())["url"]
            for upstream.status in (200, 401, 500):
                await post(url + CHAT, **MESSAGE)
            upstream.status = 200
            outputs = [await asyncio.to_thread(command.run, *words) for words in (("status",), ("reload",), ("restart", "pods"), ("logs",))]
            assert KEY not in "".join(one.stdout + one.stderr for one in (started, *outputs))
            assert outputs[2].returncode == 0, outputs[2].stderr
            assert (await post(url + CHAT, **MESSAGE))[0] == 200
            assert "UPSTREAM_API_KEY" not in outputs[1].stdout
            changed = await asyncio.to_thread(command.run, "reload", UPSTREAM_API_KEY="another-key", MAKEFLAGS="")
            assert re.search(r"UPSTREAM_API_KEY +\(secret\) +\(another\) +after `convoy down, convoy up`", changed.stdout)
            files = [path for path in command.state_dir.rglob("*") if path.is_file()]
            assert [path for path in files if KEY.encode() in path.read_bytes()] == []
            have = {" ".join(one.cmdline()) for one in processes.find(command.state_dir) if KEY in str(one.environ())}
            assert {words.rpartition(" -m ")[2].split()[0] for words in have} == {"services.engine", "services.ops.supervise"}
            assert [one.info for one in psutil.process_iter(["cmdline"]) if KEY in " ".join(one.info["cmdline"] or [])] == []


async def test_an_address_is_needed() -> None:
    """ENGINE=remote without one, or a key that no header can carry, is one line; the key is not in it."""
    for settings, told in (
        ({"upstream_url": ""}, "ENGINE=remote needs UPSTREAM_URL"),
        ({"upstream_api_key": "two words"}, "UPSTREAM_API_KEY"),
    ):
        wanted: dict[str, object] = {"pods": 1, "upstream_url": "http://127.0.0.1:1/v1"} | settings
        with running_pods(0, engine="remote", **wanted) as pods:
            assert await asyncio.to_thread(pods.process.wait, DEADLINE_SECONDS) == 1
            assert told in pods.log()
            assert "two words" not in pods.log()


async def test_slots_are_free_after_all_of_it() -> None:
    """Refused, broken and cut answers leave nothing behind."""
    async with upstream_server() as upstream, forwarding(upstream.url) as pods, aiohttp.ClientSession() as session:
        for upstream.status, upstream.frames in ((500, []), (200, [FRAME]), (200, [FRAME, DONE])):
            await asyncio.gather(*(post(pods.url + CHAT, **MESSAGE, stream=True) for _ in range(40)))
        await until_metric(session, pods.url, "llm_slots_in_use", 0)
        await until_metric(session, pods.url, "llm_batch_size", 0)
