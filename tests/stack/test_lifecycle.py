"""Pods, edge and Envoy replaced, and pods added and taken away, by the command and under load: no request may be lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.stack.convoy import convoy, until
from tests.stack.under_load import load, model_of, typed, until_beside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stack.convoy import Convoy

pytestmark = pytest.mark.stack


@contextlib.contextmanager
def stack(**settings: str) -> Iterator[tuple[Convoy, Path]]:
    """A stack that serves, and its `.env`."""
    with tempfile.TemporaryDirectory(prefix="cv", dir="/tmp") as folder:
        env_file = Path(folder) / ".env"
        env_file.write_text("")
        with convoy(CONVOY_ENV_FILE=str(env_file), **settings) as running:
            started = running.run("up", "--detach")
            assert started.returncode == 0, started.stderr
            yield running, env_file


def pids(running: Convoy) -> dict[str, int]:
    """The process of each pod, by name."""
    return {row["name"]: row["pid"] for row in running.status()["pods"]}


@pytest.mark.parametrize("number", [1, 2])
async def test_all_pods_are_replaced_under_load(number: int) -> None:
    """New processes with the model that `.env` names now; the one pod of a stack is replaced without a gap, too."""
    with stack(PODS=str(number)) as (running, env_file):
        before, runner = pids(running), running.row("runner")
        env_file.write_text("MODEL_NAME=org/second\n")
        assert "after `convoy restart pods`" in running.run("reload").stdout
        async with load(running) as answers:
            done = await typed(running, "restart", "pods")
        after = pids(running)
        assert (done.returncode, done.stderr) == (0, "")
        assert after.keys() == before.keys()
        assert not set(after.values()) & set(before.values())
        assert {answer.pod for answer in answers} == set(after)
        assert await model_of(running) == "org/second"
        shown = done.stdout.splitlines()
        assert [f"engine-{count + 1}: the new one serves" in done.stdout for count in range(number)] == [True] * number
        assert re.search(r"replaced in [\d.]+ s; model org/second$", shown[-1])
        assert running.run("reload").stdout.endswith("all is in force\n")
        assert running.ready()
        assert (running.row("runner")["pid"], running.row("runner")["restarts"]) == (runner["pid"], 0)


async def test_everything_is_replaced_under_load() -> None:
    """Pods, edge and Envoy are new processes, none counts as having died, and what waited for it is in force."""
    with stack() as (running, env_file):
        before = pids(running)
        programs = {name: running.row(name) for name in ("edge", "envoy")}
        env_file.write_text("MAX_BODY_BYTES=4096\nLOG_LEVEL=debug\n")
        assert "after `convoy restart`\n" in running.run("reload").stdout
        async with load(running):
            done = await typed(running, "restart")
        assert (done.returncode, done.stderr) == (0, "")
        assert not set(pids(running).values()) & set(before.values())
        for name, row in programs.items():
            assert (running.row(name)["pid"] != row["pid"], running.row(name)["restarts"]) == (True, 0)
        assert running.run("reload").stdout.endswith("all is in force\n")
        assert "no tools run" in done.stdout
        assert running.ready()


async def test_pods_come_and_go_under_load() -> None:
    """From two to four to one; the number holds for a runner that had to be started again, until `convoy down`."""
    with stack() as (running, _):
        async with load(running):
            for number in (4, 1):
                done = await typed(running, "scale", str(number))
                assert (done.returncode, done.stderr) == (0, "")
                told = await asyncio.to_thread(running.status)
                assert [row["name"] for row in told["pods"]] == [f"engine-{count + 1}" for count in range(number)]
                assert told["ready"]
                assert "NUM_THREADS=0 shares them" in done.stdout
            (pid,) = (row["pid"] for row in told["pods"])
            runner = next(row["pid"] for row in told["programs"] if row["name"] == "runner")
            os.kill(runner, signal.SIGKILL)
            await until_beside(lambda: pid not in pids(running).values() and running.ready(), lambda: str(running.status()))
        assert list(pids(running)) == ["engine-1"]
        assert running.run("down").returncode == 0
        running.assert_nothing_left()


async def test_pods_that_cannot_load_leave_the_others_as_they_are() -> None:
    """A restart and more pods with a model that does not load: one line with the engine's reason, exit code 1, the old pods serve on."""
    with stack() as (running, env_file):
        before = pids(running)
        env_file.write_text("FAKE_FAILURE=load\n")
        async with load(running):
            failed = await typed(running, "restart", "pods")
        reason = "engine-1: FAKE_FAILURE=load: the fake engine was told not to load"
        line = rf"convoy: the pods were not replaced: {reason}; all pods run what they ran before \(logs: .*\)\n"
        assert failed.returncode == 1
        assert re.fullmatch(line, failed.stderr), failed.stderr
        assert (pids(running), running.ready()) == (before, True)
        env_file.write_text("MODEL_NAME=./nowhere\nENGINE=transformers\n")
        missing = await typed(running, "restart", "pods", ENGINE="transformers")
        assert re.fullmatch(r"convoy: MODEL_NAME=\./nowhere: .* is no folder; .*\n", missing.stderr)
        env_file.write_text("")
        assert (await typed(running, "restart", "pods")).returncode == 0
        assert not set(pids(running).values()) & set(before.values())


async def test_no_pod_goes_before_envoy_knows_the_one_that_follows() -> None:
    """While the edge stands still Envoy cannot learn of new pods: the old ones stay, and the command says what it waited for in vain."""
    with stack(PODS="1") as (running, _):
        before, edge = pids(running), running.row("edge")["pid"]
        os.kill(edge, signal.SIGSTOP)
        try:
            async with load(running):
                failed = await typed(running, "restart", "pods", "--timeout", "3")
        finally:
            os.kill(edge, signal.SIGCONT)
        reason = "engine-1 is ready, but Envoy does not take it in after 3 s; all pods run what they ran before"
        assert (failed.returncode, reason in failed.stderr) == (1, True), failed.stderr
        assert pids(running) == before
        await until_beside(running.ready, lambda: str(running.status()))


def test_what_cannot_be_asked_for_is_said() -> None:
    """A number that is not possible, or nothing that runs: one line, exit code 1."""
    with convoy() as running:
        for words, line in {
            ("scale", "0"): "`convoy scale 0` is not possible: the number of pods must be from 1 to 256",
            ("scale", "257"): "`convoy scale 257` is not possible: the number of pods must be from 1 to 256",
            ("scale", "2"): "nothing runs; start it with `convoy up`",
            ("restart", "pods"): "nothing runs; start it with `convoy up`",
        }.items():
            done = running.run(*words)
            assert (done.returncode, done.stderr) == (1, f"convoy: {line}\n")


def test_ctrl_c_takes_a_restart_back() -> None:
    """Ctrl-C while the new pod loads: it goes, the old ones serve on, and that is the one line."""
    with stack() as (running, env_file):
        before = pids(running)
        env_file.write_text("FAKE_LOAD_SECONDS=600\n")
        with running.spawn("restart", "pods") as process:
            until(lambda: len(running.status()["pods"]) > len(before), lambda: str(running.status()))
            assert running.ready(), "two pods serve while a third loads"
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors.startswith("convoy: the restart was stopped; all pods run what they ran before")) == (1, True)
        assert len(errors.splitlines()) == 1
        assert (pids(running), running.ready()) == (before, True)
        slow = running.run("restart", "pods", "--timeout", "2")
        assert (slow.returncode, "engine-1 is not ready after 2 s" in slow.stderr) == (1, True)
        assert pids(running) == before


def test_a_crash_loop_is_called_that() -> None:
    """A pod that dies again and again: `status` has its name for it, the reason, and when it is tried next."""
    with stack() as (running, _):

        def row() -> dict[str, Any]:
            found = running.row("engine-2")
            if found["pid"]:
                os.kill(found["pid"], signal.SIGKILL)
            return found

        until(lambda: row()["next_try_at"] and row()["restarts"] > 2, lambda: str(running.status()))
        told = running.run("status")
        assert told.returncode == 1
        assert re.search(r"engine-2 +crash loop, (next try in \d+ s|loading|unreachable).*killed by SIGKILL", told.stdout), told.stdout
        until(running.ready, lambda: str(running.status()))
