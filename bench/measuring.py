"""What every measurement needs: processor time of a process, a closed-loop client, medians over interleaved rounds, tables."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[1]
_CPUCLOCK_SCHED = 2


@dataclass(slots=True)
class Section:
    """One table of docs/benchmarks.md. `rows` hold text; `notes` say how it was measured and what it means."""

    title: str
    head: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: str = ""

    def markdown(self) -> str:
        """The section as Markdown."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        return f"## {self.title}\n\n{self.notes}\n\n{table}\n"


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of requests cost: median latency and processor time per request, both in microseconds."""

    p50_us: float
    cpu_us: float


def cpu_seconds(pids: Sequence[int]) -> float:
    """Processor time that these processes have used so far, user and system.

    By the kernel's clock of each process (clock_getcpuclockid(3)), which counts nanoseconds; /proc counts in steps of 10 ms.
    """
    return sum(time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED) for pid in pids)


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
    """One request, read to its end; anything but 200 ends the measurement."""
    async with session.post(url, json=body, headers=headers) as response:
        await response.read()
        if response.status != 200:
            raise RuntimeError(f"{url} answered {response.status}")


async def closed_loop(  # noqa: PLR0913 - what a load is
    url: str,
    body: dict[str, Any],
    *,
    clients: int,
    requests: int,
    pids: Sequence[int],
    headers: Mapping[str, str] | Iterator[Mapping[str, str]] | None = None,
) -> Round:
    """`clients` that each ask again as soon as they are answered, until `requests` are done. `headers`: of all, or of one after another."""
    latencies: list[float] = []
    todo = iter(range(requests))
    heads = headers if isinstance(headers, Iterator) else itertools.repeat(headers)

    async def client(session: aiohttp.ClientSession) -> None:
        for _ in todo:
            start = time.perf_counter()
            await ask(session, url, body, next(heads))
            latencies.append(time.perf_counter() - start)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(ask(session, url, body, next(heads)) for _ in range(clients)))  # connections are open before the clock runs
        before = cpu_seconds(pids)
        await asyncio.gather(*(client(session) for _ in range(clients)))
        used = cpu_seconds(pids) - before
    return Round(statistics.median(latencies) * 1e6, used / requests * 1e6)


async def interleaved(rounds: int, **contestants: Callable[[], Awaitable[Round]]) -> dict[str, list[Round]]:
    """Each contestant in turn, `rounds` times, so that a drift of the machine meets all of them."""
    results: dict[str, list[Round]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            results[name].append(await run())
    return results


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios, round by round."""
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def verdict(value: float, aim: float, *, at_most: bool) -> str:
    """The ratio with its aim and whether it was met."""
    met = value <= aim if at_most else value >= aim
    return f"{value:.2f}× (aim {'≤' if at_most else '≥'} {aim}×{'' if met else ', **missed**'})"


@contextlib.contextmanager
def python_process(*arguments: str, ready: str) -> Iterator[tuple[int, str]]:
    """A Python program of ours; its pid and the line it prints when it serves, which begins with `ready`."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout
        for line in process.stdout:
            if line.startswith(ready):
                yield process.pid, line.removeprefix(ready).strip()
                return
        raise RuntimeError(f"{arguments} ended with code {process.wait()}")
    finally:
        process.terminate()
        process.wait()
