"""A pod that is told to stop: by `POST /drain` and by SIGTERM, with requests running and waiting."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.contract.asking import CHAT, body, metric, read_all, unread, until_metric
from tests.contract.test_slow_readers import LARGE, SETTINGS, read_little
from tests.running import DEADLINE_SECONDS, running_pods, until

if TYPE_CHECKING:
    from tests.running import RunningPods

ENDLESS = {"max_tokens": 4000, "ignore_eos": True}


async def tell(session: aiohttp.ClientSession, pods: RunningPods, how: str) -> None:
    """Tells the only pod to drain."""
    if how == "SIGTERM":
        os.kill(pods.entry("engine-1")["pid"], signal.SIGTERM)
        return
    for _ in range(2):  # the second time it changes nothing
        async with session.post("/drain") as response:
            assert (response.status, await response.json()) == (202, {"pod": "engine-1", "state": "draining"})


async def asked(session: aiohttp.ClientSession, **more: Any) -> tuple[int, dict[str, Any], bytes]:
    """Status, error and raw bytes of an answer."""
    async with session.post(CHAT, json=body(**more)) as response:
        raw = await response.read()
    return response.status, error_in(raw), raw


def error_in(raw: bytes) -> dict[str, Any]:
    """The error of a JSON answer, or of a stream's last event; empty if there is none."""
    error: dict[str, Any] = json.loads(raw.strip().rpartition(b"data: ")[2] or b"{}").get("error", {}) if b'"error"' in raw else {}
    return error


@pytest.mark.parametrize("how", ["POST", "SIGTERM"])
async def test_what_runs_ends_well_and_what_waits_is_handed_back(how: str) -> None:
    """Running: whole. Queued: 503 `draining`, which Envoy tries elsewhere. The process ends with code 0, and another takes its place."""
    with running_pods(1, max_concurrent_requests=1, fake_tokens_per_second=20) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            running = asyncio.create_task(asked(session, max_tokens=100))
            await until_metric(session, pods.url, "llm_slots_in_use", 1)
            queued = asyncio.create_task(asked(session, stream=False))
            await until_metric(session, pods.url, "llm_queue_depth", 1)
            await tell(session, pods, how)
            until(lambda: pods.readiness(pods.url).get("state") == "draining", pods.log)
            assert await metric(session, pods.url, 'llm_pod_state.*"draining".*') == 1
            status, error, _ = await asyncio.wait_for(queued, DEADLINE_SECONDS)
            assert (status, error["code"]) == (503, "draining")
            assert not running.done(), "handed back at once, not when a slot comes free"
            status, _, raw = await asyncio.wait_for(running, DEADLINE_SECONDS)
            assert (status, raw.endswith(b"data: [DONE]\n\n")) == (200, True)
        until(lambda: pods.entry("engine-1").get("restarts") == 1, pods.log)
        assert pods.entry("engine-1")["last_exit"] == "exit code 0"
        pods.until_ready(1)


async def test_what_does_not_end_in_time_is_told_why() -> None:
    """After DRAIN_TIMEOUT_SECONDS: a stream gets a last event without [DONE], a JSON answer 503, both with the code `draining`."""
    with running_pods(1, fake_tokens_per_second=5, drain_timeout_seconds=1) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            stream = asyncio.create_task(asked(session, **ENDLESS))
            answer = asyncio.create_task(asked(session, **ENDLESS, stream=False))
            await until_metric(session, pods.url, "llm_slots_in_use", 2)
            await tell(session, pods, "POST")
            status, error, raw = await asyncio.wait_for(stream, DEADLINE_SECONDS)
            assert (status, error["code"], b"[DONE]" in raw) == (200, "draining", False)
            assert "DRAIN_TIMEOUT_SECONDS=1" in error["message"]
            status, error, _ = await asyncio.wait_for(answer, DEADLINE_SECONDS)
            assert (status, error["code"]) == (503, "draining")
        until(lambda: pods.entry("engine-1").get("restarts") == 1, pods.log)
        assert pods.entry("engine-1")["last_exit"] == "exit code 0"


async def test_a_pod_that_loads_drains_at_once() -> None:
    """It has no model to serve with until somebody knows, so it refuses and ends."""
    with running_pods(0, pods=1, fake_load_seconds=60) as pods:
        until(lambda: pods.urls and pods.readiness(pods.url), lambda: "a listening pod")
        pid = pods.entry("engine-1")["pid"]
        async with aiohttp.ClientSession(pods.url) as session, session.post("/drain") as response:
            assert response.status == 202
        until(lambda: pods.entry("engine-1").get("pid") not in {None, pid}, pods.log)
        assert pods.entry("engine-1")["last_exit"] == "exit code 0"
        assert "draining" in pods.log()


async def test_an_answer_that_is_read_slowly_is_read_to_its_end() -> None:
    """The generation is over long before its reader has everything: a pod that drains waits for him."""
    with running_pods(1, **SETTINGS) as pods:
        connection = unread(pods.url, **LARGE, stream=False)
        async with aiohttp.ClientSession(pods.url) as session:
            await until_metric(session, pods.url, "llm_generation_tokens_total", LARGE["max_tokens"])
            await until_metric(session, pods.url, "llm_slots_in_use", 0)
            await tell(session, pods, "POST")
        until(lambda: '"pod.draining"' in pods.log(), pods.log)
        # Longer than draining takes until the pod refuses, and than what a server that is closed leaves its connections.
        raw = await asyncio.to_thread(read_little, connection, 6.0)
        raw += await asyncio.to_thread(read_all, connection)
        head, _, content = raw.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(content)}".encode() in head
        assert json.loads(content)["usage"]["completion_tokens"] == LARGE["max_tokens"]
