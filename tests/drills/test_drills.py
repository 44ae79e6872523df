"""Each drill of `services/ops/drills` on one of two pods, under load. Hypothesis, fault and cure stand in the drill's module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.ops.drills.table import DRILLS
from tests.drills.counted import drilled
from tests.drills.fleet import PATIENT, SLOW_START, SMALL, fleet
from tests.stack.harness import until

if TYPE_CHECKING:
    from pathlib import Path

    from services.ops.drills.drill import Drill
    from tests.drills.fleet import Fleet

pytestmark = [pytest.mark.stack, pytest.mark.asyncio]

POD = "engine-1"


def drill(name: str, started: Fleet) -> Drill:
    """The drill of that name, for the first pod."""
    return DRILLS[name](started.pods.state_dir, POD)


async def answers_of(started: Fleet, name: str) -> float:
    """How many whole answers a pod has given, by its own count."""
    async with started.edge.session.get(f"http://127.0.0.1:{started.pods.entry(name)['port']}/metrics") as response:
        lines = (await response.text()).splitlines()
    counts = [float(line.split()[-1]) for line in lines if line.startswith("llm_requests_total{") and 'status="2xx"' in line]
    return sum(counts)


async def test_replacing_all_pods_fails_nothing() -> None:
    """One after the other: every answer is whole, and none of the processes is one from before."""
    async with fleet(2, **SLOW_START) as started:
        before = {entry["pid"] for entry in started.pods.entries}
        counted = await drilled(started, drill("replaced", started))
        assert counted.lost == [], counted.told()
        assert not before & {entry["pid"] for entry in started.pods.entries}
        await started.until_whole()


async def test_more_and_fewer_pods_fail_nothing() -> None:
    """Two, four, one, two: every answer is whole, and all four gave some."""
    async with fleet(2, **SLOW_START) as started:
        counted = await drilled(started, drill("scaled", started))
        assert counted.lost == [], counted.told()
        assert {one.pod for one in counted.outcomes} == {POD, "engine-2", "engine-3", "engine-4"}
        assert len(started.pods.entries) == 2
        await started.until_whole()


async def test_a_pod_that_is_told_to_stop_fails_nothing() -> None:
    """SIGTERM: every answer is whole, and the pod is back in a new process."""
    async with fleet(2, **SLOW_START) as started:
        counted = await drilled(started, drill("terminated", started))
        assert counted.lost == [], counted.told()
        assert started.pods.entry(POD)["restarts"] == 1
        await started.until_whole()


async def test_a_killed_pod_breaks_its_own_streams_only() -> None:
    """SIGKILL: whatever had no first token is whole; of the streams under way, those of that pod break, and say so."""
    async with fleet(2, **SLOW_START) as started:
        counted = await drilled(started, drill("killed", started))
        assert counted.failed == [], counted.told()
        assert {one.pod for one in counted.lost} <= {POD}
        assert {one.result for one in counted.lost} <= {"0 connection_broken"}
        await started.until_whole()


async def test_a_pod_frozen_for_ten_seconds_loses_nothing() -> None:
    """SIGSTOP: every answer is whole and comes once; the pod is the same process as before."""
    async with fleet(2, **PATIENT, **SLOW_START) as started:
        counted = await drilled(started, drill("frozen", started))
        assert counted.lost == [], counted.told()
        assert started.pods.entry(POD)["restarts"] == 0
        await started.until_whole()
        assert "engine-2" in {one.pod for one in counted.outcomes if one.attempts == 2}

        async def each_once() -> bool:  # a pod counts an answer when its client has it already
            answered = [await answers_of(started, entry["name"]) for entry in started.pods.entries]
            return sum(answered) == len(counted.outcomes)

        await until(each_once, "as many answers counted by the pods as by the clients")


async def test_a_pod_without_memory_fails_alone() -> None:
    """No more memory: prompts that need some, and are the first to do so, are answered elsewhere; if the pod hangs of it, it is killed."""
    async with fleet(2, **SMALL, **SLOW_START) as started:
        counted = await drilled(started, drill("out-of-memory", started), meanwhile=("hi", "hi", "hi", "many words " * 90_000))
        assert counted.failed == [], counted.told()
        assert {one.pod for one in counted.lost} <= {POD}
        assert 2 in {one.attempts for one in counted.outcomes}, "the pod had memory enough"
        await started.until_whole()


async def test_a_pod_that_cannot_log_serves(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: every answer is whole, by that pod, too; the log goes on afterwards and counts what it lacks."""
    async with fleet(2, **SLOW_START, pod_log_dir=tmp_path) as started:
        counted = await drilled(started, drill("log-disk-full", started))
        assert counted.lost == [], counted.told()
        assert {one.attempts for one in counted.outcomes} == {1}
        assert POD in {one.pod for one in counted.outcomes}
        assert started.pods.entry(POD)["restarts"] == 0
        assert "log.records_lost" in (tmp_path / f"{POD}.log").read_text()


async def test_pods_start_again_where_logs_have_no_room(tmp_path: Path) -> None:
    """A log file on a full disk, and one that cannot be opened: a killed pod is started again, and nothing without a first token fails."""
    (tmp_path / f"{POD}.log").symlink_to("/dev/full")
    (tmp_path / "engine-2.log").mkdir()
    async with fleet(2, **SLOW_START, pod_log_dir=tmp_path) as started:
        counted = await drilled(started, drill("killed", started))
        assert counted.failed == [], counted.told()
        assert {one.pod for one in counted.outcomes} >= {POD, "engine-2"}
        assert "pod.log_not_opened" in (started.pods.state_dir / "runner.log").read_text()
        await started.until_whole()
