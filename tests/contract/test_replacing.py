"""Pods replaced one after the other by their runner: with new settings, on the way back, and after a runner that died."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from services import pods_wanted
from services.pods_wanted import Restart
from tests.running import DEADLINE_SECONDS, RunningPods, running_pods, until

if TYPE_CHECKING:
    from collections.abc import Callable


def ask(pods: RunningPods, name: str, **more: Any) -> None:
    """Asks the runner for a restart."""
    pods_wanted.write_restart(pods.state_dir, Restart(id=name, **more))
    pods.process.send_signal(signal.SIGUSR1)


def told(pods: RunningPods) -> dict[str, Any]:
    """What the pods file says of the last restart."""
    found: dict[str, Any] = json.loads((pods.state_dir / "pods.json").read_text()).get("roll") or {}
    return found


def until_over(pods: RunningPods, name: str, look: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Waits for the end of a restart, looking at what a test watches meanwhile; what is told of it."""

    def is_over() -> bool:
        look()
        roll = told(pods)
        return roll.get("id") == name and roll["state"] in {"done", "failed"}

    until(is_over, lambda: f"{told(pods)} {pods.log()}")
    return told(pods)


def models(pods: RunningPods) -> list[str]:
    """What each pod serves."""
    found = []
    for url in pods.urls:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as response:  # noqa: S310 - our own pod
            found.append(json.load(response)["data"][0]["id"])
    return found


@pytest.mark.parametrize("how", ["fork", "exec"])
def test_each_pod_follows_the_one_before_it(how: str) -> None:
    """With both kinds of pods: never fewer ready ones than there shall be, never more than one beside them; the runner's process stays."""
    with running_pods(2, pod_start=how) as pods:
        before = {entry["pid"] for entry in pods.entries}
        runner, most = pods.process.pid, 0

        def look() -> None:
            nonlocal most
            entries = pods.entries
            most = max(most, len(entries))
            ready = [
                entry for entry in entries if pods.readiness(f"http://127.0.0.1:{entry['port']}").get("state") in {"ready", "draining"}
            ]
            assert len(ready) >= 2

        ask(pods, "one", settings={"MODEL_NAME": "org/second"})
        assert until_over(pods, "one", look)["state"] == "done"
        pods.until_ready(2)
        assert not before & {entry["pid"] for entry in pods.entries}

        assert most == 3
        assert models(pods) == ["org/second"] * 2
        assert pods.process.poll() is None
        for entry in pods.entries:  # what is started from now on has the new settings, too
            os.kill(entry["pid"], signal.SIGKILL)
        until(lambda: [entry["restarts"] for entry in pods.entries] == [1, 1], pods.log)
        pods.until_ready(2)
        assert models(pods) == ["org/second"] * 2
        assert pods.process.pid == runner


def test_new_settings_outlive_the_runner() -> None:
    """A runner that was killed is followed by one that has them, though its environment is that of the first; old pods go one by one."""
    with running_pods(2) as pods:
        ask(pods, "one", settings={"MODEL_NAME": "org/second"})
        assert until_over(pods, "one")["state"] == "done"
        before, most = {entry["pid"] for entry in pods.entries}, 0
        pods.process.kill()
        pods.process.wait()
        pods.start_runner()

        def replaced() -> bool:
            nonlocal most
            most = max(most, len(pods.entries))
            return not before & {entry["pid"] for entry in pods.entries}

        until(replaced, pods.log)
        pods.until_ready(2)
        assert (most, models(pods)) == (3, ["org/second"] * 2)


def test_a_new_pod_that_dies_has_all_taken_back() -> None:
    """When a pod that is new dies while others wait for their turn, all run again what they ran before, and may be replaced later."""
    with running_pods(2) as pods:
        second = pods.entry("engine-2")["pid"]
        ask(pods, "one", settings={"MODEL_NAME": "org/second", "FAKE_LOAD_SECONDS": "3"})

        def kill_the_first() -> None:
            roll = told(pods)
            if roll.get("replaced") == 1 and roll["state"] == "rolling":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pods.entry("engine-1")["pid"], signal.SIGKILL)

        roll = until_over(pods, "one", kill_the_first)
        assert (roll["state"], roll["is_mixed"], roll["reason"]) == ("failed", False, "engine-1: killed by SIGKILL")
        pods.until_ready(2)
        assert models(pods) == ["demo"] * 2
        assert pods.entry("engine-2")["pid"] == second
        ask(pods, "two", settings={"MODEL_NAME": "org/third"})
        assert until_over(pods, "two")["state"] == "done"
        assert models(pods) == ["org/third"] * 2


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"QUEUE_CAPACITY": "many"}, "QUEUE_CAPACITY=many: must be a whole number from 0 to 100000"),
        ({"ENGINE": "transformers", "MODEL_NAME": "./no-such-model"}, "MODEL_NAME=./no-such-model"),
    ],
)
def test_what_could_not_start_touches_no_pod(settings: dict[str, str], reason: str) -> None:
    """Settings that cannot be used, and a model that is not there, are found before any pod is started."""
    with running_pods(1) as pods:
        before, seen = pods.entries, set[int]()
        ask(pods, "one", settings=settings)
        roll = until_over(pods, "one", lambda: seen.update(entry["pid"] for entry in pods.entries))
        assert (roll["state"], reason in roll["reason"], roll["replaced"]) == ("failed", True, 0)
        assert pods.entries == before
        assert seen == {before[0]["pid"]}


def test_a_stop_ends_old_and_new() -> None:
    """SIGTERM in the middle of a restart: all pods drain and go, the runner ends in good order."""
    with running_pods(2) as pods:
        ask(pods, "one", settings={"FAKE_LOAD_SECONDS": "600"})
        until(lambda: len(pods.entries) == 3, pods.log)
        pods.process.send_signal(signal.SIGTERM)
        assert pods.process.wait(DEADLINE_SECONDS) == 0
        assert pods.entries == []
        assert told(pods)["state"] == "failed"


def test_fixed_ports_are_no_hindrance() -> None:
    """With POD_PORT a new pod takes a free port above, for the old one still has its own."""
    with running_pods(1) as probe:
        port = probe.entries[0]["port"]
    with running_pods(1, pod_port=port) as pods:
        assert pods.entries[0]["port"] == port
        ask(pods, "one")
        assert until_over(pods, "one")["state"] == "done"
        assert pods.entries[0]["port"] > port


def test_a_crash_loop_is_told_with_its_reason() -> None:
    """A pod that dies again and again is listed with the last reason and the time of the next try, until one is ready for good."""
    with running_pods(1) as pods:

        def loops() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = json.loads((pods.state_dir / "pods.json").read_text())["loops"]
            return found

        for restarts in (1, 2):
            os.kill(pods.entry("engine-1")["pid"], signal.SIGKILL)
            until(lambda wanted=restarts: (pods.entry("engine-1") or {"restarts": 0})["restarts"] == wanted or loops(), pods.log)  # type: ignore[misc]
            if restarts == 1:
                assert loops() == [], "the first death is none"
                pods.until_ready(1)
        loop = loops()[0]
        assert (loop["name"], loop["restarts"], loop["last_exit"]) == ("engine-1", 2, "killed by SIGKILL")
        pods.until_ready(1)
        until(lambda: loops() == [], pods.log)
