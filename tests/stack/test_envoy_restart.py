"""Envoy is replaced while it serves, is killed, or cannot be replaced: what clients and the person at the keyboard see of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from services.ops import processes, supervisor_client
from services.ops.state import StateDir
from tests.stack.convoy import convoy
from tests.stack.envoy_clients import DONE, TOKENS_PER_SECOND, Stream, is_true, record, restarted, traffic
from tests.stack.harness import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stack.convoy import Convoy

pytestmark = pytest.mark.stack

# Promised is one second; the machine may be busy.
BACK_SECONDS = 3.0

# A chain of time limits that is short, for an Envoy that was replaced must be given more than the last of them.
SHORT = {
    "QUEUE_TIMEOUT_SECONDS": "1",
    "KEEPALIVE_SECONDS": "2",
    "FIRST_TOKEN_TIMEOUT_SECONDS": "3",
    "HANG_TIMEOUT_SECONDS": "5",
    "STALL_TIMEOUT_SECONDS": "6",
    "REQUEST_TIMEOUT_SECONDS": "7",
}
SHUTDOWN_SECONDS = 8


@pytest.fixture(scope="module")
def stack() -> Iterator[Convoy]:
    """A stack with the usual limits."""
    with convoy(FAKE_TOKENS_PER_SECOND=str(TOKENS_PER_SECOND)) as running:
        yield started(running)


def started(running: Convoy) -> Convoy:
    """The stack, serving."""
    up = running.run("up", "--detach")
    assert up.returncode == 0, up.stderr
    return running


async def back(running: Convoy, since: float) -> None:
    """Waits until a request is answered again, and demands that it took no longer than promised."""

    async def answers() -> bool:
        with contextlib.suppress(OSError):
            return await asyncio.to_thread(running.answers)
        return False

    await until(answers, "a request is answered again")
    assert time.monotonic() - since < BACK_SECONDS


async def test_restarts_under_traffic_lose_nothing(stack: Convoy) -> None:
    """Two restarts at once after each other: no request is refused or fails, and the streams of all three Envoys end whole."""
    first = record(stack)
    async with traffic(stack) as outcomes, Stream(stack, 8) as oldest:
        told = await restarted(stack)
        assert f"epoch {first.epoch + 1}" in told
        assert "660 s at most" in told
        async with Stream(stack, 8) as older:
            await restarted(stack)
            assert record(stack).epoch == first.epoch + 2
            assert first.pid in record(stack).replaced
            assert len(record(stack).replaced) == 2
            before = len(outcomes)
            await until(lambda: is_true(len(outcomes) > before + 200), lambda: f"200 requests more, have {len(outcomes)}")
            for stream in (oldest, older):
                assert (await stream.read()).endswith(DONE)
    assert len(outcomes) > 300
    assert [outcome for outcome in outcomes if outcome] == []
    await until(lambda: is_true(not record(stack).replaced), "the replaced ones end once they have no client")
    assert not psutil.pid_exists(first.pid)
    assert stack.row("envoy")["restarts"] == 0
    assert stack.row("envoy")["pid"] == record(stack).pid


async def test_a_killed_envoy_is_back_and_older_ones_finish(stack: Convoy) -> None:
    """After SIGKILL a fresh Envoy serves at once; a stream that an older one still has goes on to its end."""
    async with Stream(stack, 6) as stream:
        await restarted(stack)
        before = record(stack)
        os.kill(before.pid, signal.SIGKILL)
        await back(stack, time.monotonic())
        after = record(stack)
        assert (after.epoch, after.restarts, after.last_exit) == (0, before.restarts + 1, "killed by SIGKILL")
        assert after.replaced == before.replaced != ()
        assert stack.row("envoy")["last_exit"] == "killed by SIGKILL"
        assert (await stream.read()).endswith(DONE)


async def test_the_death_of_a_replaced_envoy_harms_none_but_its_streams(stack: Convoy) -> None:
    """The newest goes on without the one before it, and can itself be replaced."""
    async with Stream(stack, 60) as stream:
        await restarted(stack)
        serving = record(stack)
        os.kill(serving.replaced[0], signal.SIGKILL)
        assert not (await stream.read()).endswith(DONE)
    async with Stream(stack, 6) as stream:
        await restarted(stack)
        assert record(stack).epoch == serving.epoch + 1
        assert (await stream.read()).endswith(DONE)
    assert record(stack).restarts == serving.restarts


async def test_a_killed_parent_is_back_without_orphans(stack: Convoy) -> None:
    """SIGKILL of Envoy's parent takes its Envoys with it, and the next one serves at once."""
    async with Stream(stack, 60):
        await restarted(stack)
        before = record(stack)
        parent = supervisor_client.programs(StateDir(stack.state_dir).socket)["envoy"].pid
        envoys = [psutil.Process(pid) for pid in (before.pid, *before.replaced)]
        os.kill(parent, signal.SIGKILL)
        killed_at = time.monotonic()
        await until(lambda: is_true(record(stack).pid != before.pid), "another parent")
        await back(stack, killed_at)
        assert len(envoys) == 2
        assert processes.wait_gone(envoys, BACK_SECONDS) == []
    await until(lambda: is_true(stack.row("envoy").get("restarts") == before.restarts + 1), lambda: str(stack.status()))
    assert stack.row("envoy")["last_exit"] == "killed by SIGKILL"


def test_a_bootstrap_that_envoy_refuses_changes_nothing(stack: Convoy) -> None:
    """The command fails with Envoy's own reason, the old Envoy serves on; with a good file the next restart works."""
    bootstrap = stack.state_dir / "envoy.yaml"
    good, before = bootstrap.read_bytes(), record(stack)
    bootstrap.write_text("garbage")
    failed = stack.run("restart", "envoy")
    bootstrap.write_bytes(good)
    assert failed.returncode == 1
    assert failed.stderr.startswith("convoy: Envoy was not replaced, the one before serves on: ")
    assert "Unable to convert YAML as JSON: garbage" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert (record(stack).pid, record(stack).replaced) == (before.pid, ())
    assert stack.answers()
    assert stack.run("restart", "envoy").returncode == 0


async def test_a_stream_ends_when_its_envoy_has_had_its_time() -> None:
    """A stream on a replaced Envoy that is longer than the time for that is cut then, and not before; new requests feel nothing."""
    settings = {"FAKE_TOKENS_PER_SECOND": str(TOKENS_PER_SECOND), "ENVOY_PARENT_SHUTDOWN_SECONDS": str(SHUTDOWN_SECONDS)}
    with convoy(**SHORT, **settings, PODS="1") as running:
        started(running)
        async with Stream(running, 90) as stream:
            began = time.monotonic()
            await restarted(running)
            serving = record(running).pid
            assert not (await stream.read()).endswith(DONE)
            assert stream.broke
            assert SHUTDOWN_SECONDS <= time.monotonic() - began < 3 * SHUTDOWN_SECONDS
        assert running.answers()
        assert record(running).pid == serving
        async with Stream(running, 90):
            await restarted(running)
            stopping_at = time.monotonic()
            assert running.run("down").returncode == 0
            assert time.monotonic() - stopping_at < 30
        running.assert_nothing_left()


def test_what_cannot_be_restarted_is_said() -> None:
    """Another name, or nothing that runs, is one line and exit code 1."""
    with convoy() as running:
        other = running.run("restart", "engine-1")
        line = "convoy: `convoy restart engine-1` is not possible; what can be restarted: pods, edge, envoy, tools; without a name, all of "
        assert (other.returncode, other.stderr) == (1, f"{line}them\n")
        nothing = running.run("restart", "envoy")
        assert (nothing.returncode, nothing.stderr) == (1, "convoy: nothing runs; start it with `convoy up`\n")


def test_too_little_time_for_a_replaced_envoy_stops_the_start() -> None:
    """It must be above the longest answer."""
    with convoy() as running:
        failed = running.run("up", "--detach", ENVOY_PARENT_SHUTDOWN_SECONDS="600")
        line = "convoy: ENVOY_PARENT_SHUTDOWN_SECONDS=600 must be greater than REQUEST_TIMEOUT_SECONDS=600\n"
        assert (failed.returncode, failed.stderr) == (1, line)
