"""The life of pods under their runner: loading, readiness, draining, death, replacement."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from services import pods_file
from tests.running import DEADLINE_SECONDS, ROOT, RunningPods, running_pods, until

if TYPE_CHECKING:
    from pathlib import Path

CHAT = "/v1/chat/completions"
SHORT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 5}
READY_SECONDS = 2.0
"""What is promised for a forked pod; tests allow three times as much."""


async def test_a_pod_that_loads_is_alive_but_not_ready() -> None:
    """While the model loads, /livez is 200, /readyz 503 with progress, and a chat is 503 `not_ready`."""
    with running_pods(0, pods=1, fake_load_seconds=3) as pods:
        until(lambda: pods.urls and pods.readiness(pods.url), lambda: "a listening pod")
        assert pods.readiness(pods.url) | {"seconds": 0} == {
            "pod": "engine-1",
            "state": "loading",
            "progress": "pretending to load",
            "seconds": 0,
        }
        async with aiohttp.ClientSession(pods.url) as session:
            async with session.get("/livez") as live, session.get("/healthz") as healthy, session.get("/readyz") as ready:
                assert (live.status, healthy.status, ready.status) == (200, 200, 503)
                assert await healthy.read() == b'{"ok": true}'
            async with session.post(CHAT, json=SHORT) as refused:
                assert (refused.status, (await refused.json())["error"]["code"]) == (503, "not_ready")
        pods.until_ready(1)


def test_a_load_that_fails_ends_the_process_with_one_line(tmp_path: Path) -> None:
    """The runner prints why, leaves it in the pods file, and exits 1 with no pod behind."""
    env = os.environ | {"ENGINE": "fake", "FAKE_FAILURE": "load", "STATE_DIR": str(tmp_path), "POD_LOG_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "services.engine"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "engine: FAKE_FAILURE=load: the fake engine was told not to load\n"
    left = pods_file.read(tmp_path / "pods.json")
    assert (left.pods, left.error) == ((), "FAKE_FAILURE=load: the fake engine was told not to load")


@pytest.mark.parametrize(
    "setting", [{"PODS": "none"}, {"MAX_CONCURENT_REQUESTS": "1"}, {"MODEL_NAME": "./no-such-model", "ENGINE": "transformers"}]
)
def test_what_cannot_start_says_why_in_one_line(setting: dict[str, str], tmp_path: Path) -> None:
    """A bad setting or a model that is not there: one line that names it, exit code 1."""
    env = os.environ | {"ENGINE": "fake", "STATE_DIR": str(tmp_path), "POD_LOG_DIR": str(tmp_path)} | setting
    done = subprocess.run(
        [sys.executable, "-m", "services.engine"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert next(iter(setting)) in done.stderr


async def ask_status(session: aiohttp.ClientSession) -> int:
    """The status of a short chat; a 503 must be `draining`, which Envoy tries elsewhere."""
    async with session.post(CHAT, json=SHORT) as response:
        assert response.status != 503 or response.headers["x-convoy-reason"] == "draining"
        return response.status


async def test_sigterm_lets_running_requests_finish() -> None:
    """Told to stop, a pod is not ready at once, soon refuses what is new, finishes its stream to the last byte; the runner exits 0."""
    with running_pods(1, fake_tokens_per_second=20) as pods:
        asked = SHORT | {"stream": True, "max_tokens": 100}
        async with aiohttp.ClientSession(pods.url) as session, session.post(CHAT, json=asked) as stream:
            await stream.content.readline()
            pods.process.send_signal(signal.SIGTERM)
            until(lambda: pods.readiness(pods.url).get("state") == "draining", pods.log)
            async with session.post(CHAT, json=SHORT) as late:
                assert late.status == 200, "Envoy cannot know yet that the pod drains"
            while (status := await ask_status(session)) == 200:
                pass
            assert status == 503
            assert (await stream.content.read()).endswith(b"data: [DONE]\n\n")
        assert pods.process.wait(DEADLINE_SECONDS) == 0
        assert pods.entries == []


async def test_draining_is_bounded() -> None:
    """A request that outlasts DRAIN_TIMEOUT_SECONDS is ended visibly: without [DONE]."""
    with running_pods(1, fake_tokens_per_second=5, drain_timeout_seconds=1) as pods:
        asked = SHORT | {"stream": True, "max_tokens": 4000}
        async with aiohttp.ClientSession(pods.url) as session, session.post(CHAT, json=asked) as stream:
            await stream.content.readline()
            pods.process.send_signal(signal.SIGTERM)
            raw = b""
            with suppress(aiohttp.ClientPayloadError):
                raw = await asyncio.wait_for(stream.content.read(), DEADLINE_SECONDS)
        assert b"[DONE]" not in raw
        assert pods.process.wait(DEADLINE_SECONDS) == 0


@pytest.mark.parametrize("how", ["fork", "exec"])
def test_a_killed_pod_is_replaced_at_once(how: str) -> None:
    """After SIGKILL a new pod of that name is ready again, and the pods file says how often and why."""
    with running_pods(2, pod_start=how) as pods:
        before = pods.entry("engine-2")
        killed_at = time.monotonic()
        os.kill(before["pid"], signal.SIGKILL)
        until(lambda: pods.entry("engine-2").get("pid") not in {None, before["pid"]}, pods.log)
        pods.until_ready(2)
        if how == "fork":
            assert time.monotonic() - killed_at < 3 * READY_SECONDS
        assert pods.entry("engine-2")["restarts"] == 1
        assert pods.entry("engine-2")["last_exit"] == "killed by SIGKILL"
        assert pods.entry("engine-1")["restarts"] == 0


def test_a_pod_that_keeps_dying_is_started_with_pauses() -> None:
    """The first death is answered at once; after the next ones the pause grows, so that a loop does not eat the machine."""
    with running_pods(1) as pods:
        for restarts in (1, 2):
            os.kill(pods.entry("engine-1")["pid"], signal.SIGKILL)
            until(lambda wanted=restarts: pods.entry("engine-1").get("restarts") == wanted, pods.log)  # type: ignore[misc]
            pods.until_ready(1)
        assert re.findall(r'"pause_seconds":([0-9.]+)', pods.log()) == ["0.0", "1.0"]


def test_a_silent_pod_is_killed_and_replaced() -> None:
    """A pod whose event loop says nothing for HANG_TIMEOUT_SECONDS is killed, and the reason is told."""
    limits = {"queue_timeout_seconds": 0.5, "keepalive_seconds": 1, "first_token_timeout_seconds": 1.5, "hang_timeout_seconds": 3}
    with running_pods(1, **limits) as pods:
        pid = pods.entry("engine-1")["pid"]
        os.kill(pid, signal.SIGSTOP)
        until(lambda: pods.entry("engine-1").get("pid") not in {None, pid}, pods.log)
        pods.until_ready(1)
        assert pods.entry("engine-1")["last_exit"] == "killed: silent for HANG_TIMEOUT_SECONDS=3"


async def test_pods_outlive_their_runner_until_a_new_one_replaced_them() -> None:
    """SIGKILL of the runner ends no request; a new runner's pods take over, and the old ones drain."""
    with running_pods(2, fake_tokens_per_second=10) as pods:
        old = {entry["pid"] for entry in pods.entries}
        asked = SHORT | {"stream": True, "max_tokens": 50}
        async with aiohttp.ClientSession(pods.url) as session, session.post(CHAT, json=asked) as stream:
            await stream.content.readline()
            pods.process.kill()
            pods.process.wait()
            pods.start_runner()
            until(lambda: not old & {entry["pid"] for entry in pods.entries}, pods.log)
            assert (await stream.content.read()).endswith(b"data: [DONE]\n\n")
        pods.until_ready(2)


def scale(pods: RunningPods, number: int) -> None:
    """Tells the runner how many pods are wanted."""
    (pods.state_dir / "pods_wanted").write_text(f"{number}\n")
    pods.process.send_signal(signal.SIGUSR1)


def test_pods_are_added_and_taken_away() -> None:
    """A forked pod that is added is ready within 2 s; the last ones are drained and gone when fewer are wanted."""
    with running_pods(1) as pods:
        start = time.monotonic()
        scale(pods, 3)
        pods.until_ready(3)
        assert time.monotonic() - start < 3 * READY_SECONDS
        scale(pods, 1)
        until(lambda: [entry["name"] for entry in pods.entries] == ["engine-1"], pods.log)
        scale(pods, 2)
        pods.until_ready(2)
        assert [entry["name"] for entry in pods.entries] == ["engine-1", "engine-2"]
