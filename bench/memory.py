"""Resident memory of a pod."""

from __future__ import annotations

from pathlib import Path

from bench.measuring import Section, closed_loop
from bench.pod import PATH, body
from tests.running import RunningPods, running_pods

AIM_MIB = 70


def mebibytes(pid: int, name: str) -> float:
    """A line of /proc/PID/smaps_rollup, such as Rss or Pss, in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024


async def row(engine: str, pods: RunningPods) -> list[str]:
    """After 32 requests."""
    await closed_loop(pods.url + PATH, body(stream=False), clients=8, requests=32, pids=[])
    pid = pods.entries[0]["pid"]
    resident, proportional = mebibytes(pid, "Rss"), mebibytes(pid, "Pss")
    aim = f" (aim ≤ {AIM_MIB}{'' if resident <= AIM_MIB else ', **missed**'})" if engine == "fake" else ""
    return [engine, f"{resident:.0f} MiB{aim}", f"{proportional:.0f} MiB"]


async def measure() -> list[Section]:
    """Two pods of each engine, forked."""
    section = Section(
        "Memory of a pod",
        ["engine", "resident (Rss)", "proportional (Pss): shared pages counted by share"],
        notes="Two pods forked from one runner, after 32 requests to the first.",
    )
    for engine in ("fake", "transformers"):
        with running_pods(2, engine=engine, fake_tokens_per_second=1e6) as pods:
            section.rows.append(await row(engine, pods))
    return [section]
