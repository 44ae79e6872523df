"""Faults of the fake engine that are switched on and off while pods run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.contract.asking import CHAT, body, metric, until_metric
from tests.faults import set_faults
from tests.running import DEADLINE_SECONDS, RunningPods, running_pods, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMITS: dict[str, Any] = {
    "queue_timeout_seconds": 0.5,
    "keepalive_seconds": 1,
    "first_token_timeout_seconds": 1.5,
    "hang_timeout_seconds": 3,
}
"""Time limits under which the runner soon takes a silent pod for dead."""


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    """Where a test's faults stand."""
    return tmp_path / "faults.json"


@contextlib.contextmanager
def faulty(faults: Path, count: int = 1, **settings: object) -> Iterator[RunningPods]:
    """Pods that read the file."""
    with running_pods(count, fake_faults_file=faults, **settings) as pods:
        yield pods


async def asked(session: aiohttp.ClientSession, url: str, text: str = "Hello!") -> tuple[int, str | None]:
    """Status and error code of a short chat."""
    question = {"messages": [{"role": "user", "content": text}], "max_tokens": 3}
    async with session.post(url + CHAT, json=question) as response:
        return response.status, (await response.json()).get("error", {}).get("code")


async def test_a_fault_strikes_its_pod_and_goes_again(faults: Path) -> None:
    """One pod by its name, the others by `*`; each request sees the file as it is then."""
    with faulty(faults, 2) as pods:
        first, second = pods.urls
        async with aiohttp.ClientSession() as session:
            assert await asked(session, first) == (200, None)
            set_faults(faults, {"engine-1": {"failure": "error"}, "engine-7": {"failure": "exit"}})
            assert await asked(session, first) == (500, "engine_error")
            assert await asked(session, second) == (200, None)
            set_faults(faults, {"engine-1": {"failure": "unavailable"}, "*": {"failure": "error"}})
            assert await asked(session, first) == (503, "not_ready")
            assert await asked(session, second) == (500, "engine_error")
            set_faults(faults, {})
            assert await asked(session, first) == await asked(session, second) == (200, None)
            set_faults(faults, {"*": {"failure": "error"}})
            assert await asked(session, first) == (500, "engine_error")
            await asyncio.to_thread(faults.unlink)
            assert await asked(session, first) == (200, None)


async def test_a_poisoned_prompt_is_the_only_one_struck(faults: Path) -> None:
    """`prompt` names a text; a bare prompt and a chat alike."""
    set_faults(faults, {"*": {"failure": "error", "prompt": "poison ☠"}})
    with faulty(faults) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            assert await asked(session, pods.url, "an apple") == (200, None)
            assert await asked(session, pods.url, "a poison ☠ apple") == (500, "engine_error")
            async with session.post("/v1/completions", json={"prompt": "poison ☠", "max_tokens": 2}) as response:
                assert response.status == 500


async def test_an_unavailable_pod_says_that_it_is_ready(faults: Path) -> None:
    """Requests are turned away, to be tried elsewhere, and nobody says that the engine broke."""
    with faulty(faults) as pods:
        set_faults(faults, {"*": {"failure": "unavailable"}})
        async with aiohttp.ClientSession(pods.url) as session:
            for stream in (True, False):
                async with session.post(CHAT, json=body(stream=stream)) as response:
                    assert (response.status, (await response.json())["error"]["code"]) == (503, "not_ready")
                    assert response.headers["x-convoy-reason"] == "not_ready"
                    assert response.headers["Retry-After"] == "1"
            assert pods.readiness(pods.url)["state"] == "ready"
            assert await metric(session, pods.url, "llm_engine_errors_total") == 0
            assert await metric(session, pods.url, "llm_slots_in_use") == 0


async def test_a_slow_pod_takes_so_many_times_as_long(faults: Path) -> None:
    """First token and all others."""
    with faulty(faults, fake_first_token_ms=50, fake_tokens_per_second=100) as pods:
        set_faults(faults, {"engine-1": {"failure": "slow", "factor": 10}})
        async with aiohttp.ClientSession(pods.url) as session:
            start = time.monotonic()
            async with session.post(CHAT, json=body(max_tokens=6)) as response:
                assert time.monotonic() - start >= 0.5
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
            assert time.monotonic() - start >= 1.0


async def test_a_running_answer_hangs_until_the_fault_goes(faults: Path) -> None:
    """A pod that hangs brings no token to those who run, either, and goes on where it was."""
    with faulty(faults, fake_first_token_ms=300) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            waiting = asyncio.create_task(asked(session, pods.url))
            await until_metric(session, pods.url, "llm_batch_size", 1)
            set_faults(faults, {"*": {"failure": "hang"}})
            done, _ = await asyncio.wait([waiting], timeout=1.5)  # five times what it takes
            assert not done
            set_faults(faults, {})
            assert await asyncio.wait_for(waiting, DEADLINE_SECONDS) == (200, None)


async def test_a_running_stream_breaks(faults: Path) -> None:
    """`error_after_first_token` strikes streams that have begun; the others of the pod go on."""
    with faulty(faults, fake_tokens_per_second=50) as pods:
        endless = {"max_tokens": 3000, "ignore_eos": True}
        async with aiohttp.ClientSession(pods.url) as session, session.post(CHAT, json=body(**endless)) as response:
            await response.content.readline()
            set_faults(faults, {"*": {"failure": "error_after_first_token", "prompt": "Hello"}})
            raw = (await response.read()).decode()
            assert await asked(session, pods.url, "Bye!") == (200, None)
    assert json.loads(raw.strip().rpartition("data: ")[2])["error"]["code"] == "engine_error"
    assert "[DONE]" not in raw


@pytest.mark.parametrize(
    ("failure", "end"), [("exit", "exit code 3"), ("freeze", f"killed: silent for HANG_TIMEOUT_SECONDS={LIMITS['hang_timeout_seconds']}")]
)
async def test_a_pod_that_exits_or_freezes_is_replaced(faults: Path, failure: str, end: str) -> None:
    """Both strike a stream under way: its connection breaks without a clean end, and a healthy pod takes the place."""
    with faulty(faults, fake_tokens_per_second=50, **LIMITS) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            async with session.post(CHAT, json=body(max_tokens=4000, ignore_eos=True)) as response:
                await response.content.readline()
                set_faults(faults, {"engine-1": {"failure": failure}})
                with pytest.raises(aiohttp.ClientError):
                    await response.read()
            set_faults(faults, {})
            until(lambda: pods.entry("engine-1").get("restarts") == 1, pods.log)
            pods.until_ready(1)
            assert pods.entry("engine-1")["last_exit"] == end
            assert await asked(session, pods.url) == (200, None)


@pytest.mark.parametrize(
    "content",
    [
        '{"*": {"failure": "bad luck"}}',
        '{"*": {"failure": "error", "promt": "x"}}',
        '{"*": {"failure": "slow"}}',
        '{"*": {"failure": "slow", "factor": 0}}',
        '{"*": {"failure": "error", "factor": 2}}',
        '{"*": {"prompt": "x"}}',
        '{"*": "error"}',
        '{"*": ',
        "[]",
        "\ud800",
    ],
)
def test_a_file_with_a_mistake_is_no_fault_and_told_once(faults: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The log says which file and what is wrong; a file put right works."""
    from services.engine.backends.faults import Fault, Faults

    now = Faults(str(faults), "engine-1", "none").now
    faults.write_bytes(content.encode(errors="surrogatepass"))
    assert [now(), now()] == [None, None]
    told = capsys.readouterr().out
    assert told.count("fault.broken_file") == 1
    assert str(faults) in told
    assert "unavailable" in told
    set_faults(faults, {"engine-1": {"failure": "error"}})
    assert now() == Fault("error")


def test_the_setting_for_all_holds_where_the_file_says_nothing(faults: Path) -> None:
    """FAKE_FAILURE is there without a file, and for pods that the file does not name."""
    from services.engine.backends.faults import Fault, Faults

    seen: list[Any] = [Faults(path, "engine-1", "hang").now() for path in ("", str(faults))]
    set_faults(faults, {"engine-2": {"failure": "error"}})
    seen.append(Faults(str(faults), "engine-1", "hang").now())
    assert seen == [Fault("hang")] * 3
    assert Faults(str(faults), "engine-2", "hang").now() == Fault("error")
