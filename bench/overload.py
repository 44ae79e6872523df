"""What happens past saturation: open-loop load at multiples of the measured capacity, with admission and without it, through Envoy."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Any

from bench.measuring import ROOT, Section, cpu_seconds, verdict
from bench.memory import mebibytes
from bench.mix import MEAN_TOKENS, capacity, mix
from services.ops.load.arrivals import poisson
from services.ops.load.client import run_load
from services.ops.load.plot import Axis, Series, line_chart
from services.ops.load.summary import percentile
from tests.running import running_pods
from tests.stack.harness import running_edge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from services.ops.load.outcome import Outcome
    from tests.running import RunningPods
    from tests.stack.harness import RunningEdge

FACTORS = (0.9, 1.0, 2.0, 5.0, 10.0)
PICTURE = ROOT / "docs" / "overload.svg"
LEAD_SECONDS = 10.0
GOODPUT_AIM, REFUSAL_AIM_MS, TTFT_AIM, ERROR_AIM = 0.95, 50.0, 2.0, 0.25
_PODS, _SLOTS = 2, 8
# Every slot is busy, and nobody waits for long.
_CLIENTS = _PODS * _SLOTS + 2
_EDGE: dict[str, Any] = {"max_concurrent_requests": _SLOTS, "address_requests_per_second": 1_000_000, "address_burst": 1_000_000}
# Below this wait the clock's steps are what is measured.
_MIN_WAIT_MS = 50.0
_TOO_MANY, _BROKEN = 429, 500


@dataclass(frozen=True)
class Engine:
    """What generates, and how long a client wants to wait for the whole answer."""

    name: str
    settings: Mapping[str, Any]
    deadline: float
    seconds: float
    """How long a load is counted: the slower the engine, the more chance there is in which answers end in it."""


ENGINES = (
    Engine("fake", {"fake_tokens_per_second": 150, "fake_first_token_ms": 20}, 6.0, 20.0),
    Engine("transformers", {"engine": "transformers", "num_threads": 1}, 12.0, 40.0),
)


@dataclass
class Seen:
    """One load and what came of it, after its lead-in: `outcomes` of what was asked then, `good` of what was answered in time then.

    `cores`: of the machine's, what the clients and Envoy took.
    """

    factor: float
    everything: InitVar[list[Outcome]]
    engine: Engine
    resident_mib: float
    cores: float
    outcomes: list[Outcome] = field(init=False)
    good_ones: list[Outcome] = field(init=False)
    results: dict[str, int] = field(init=False)

    def __post_init__(self, everything: list[Outcome]) -> None:
        """Counts the answers by status and code."""
        self.outcomes = [one for one in everything if one.stage == 1]
        ends, most = (LEAD_SECONDS, LEAD_SECONDS + self.engine.seconds), self.engine.deadline
        self.good_ones = [one for one in everything if one.is_whole and one.latency <= most and ends[0] <= one.ended < ends[1]]
        self.results = {}
        for outcome in self.outcomes:
            self.results[outcome.result] = self.results.get(outcome.result, 0) + 1

    @property
    def good_tokens(self) -> float:
        """Tokens a second of answers that came whole and in time: what the engine did for somebody."""
        return sum(one.tokens for one in self.good_ones) / self.engine.seconds

    @property
    def good(self) -> float:
        """Requests a second that were answered whole and in time."""
        return len(self.good_ones) / self.engine.seconds

    @property
    def ttft(self) -> float:
        """p95 of the accepted, seconds."""
        return percentile(sorted(one.ttft for one in self.outcomes if one.is_whole and one.ttft is not None) or [0.0], 0.95)

    @property
    def refusal_ms(self) -> float:
        """p99 of the refused."""
        return percentile(sorted(one.ended - one.sent for one in self.outcomes if one.status == _TOO_MANY) or [0.0], 0.99) * 1000

    @property
    def num_broken(self) -> int:
        """Answers that are neither whole nor a refusal."""
        return sum(one.status == 0 or one.status >= _BROKEN or (one.status == 200 and not one.is_whole) for one in self.outcomes)

    def errors(self) -> list[float]:
        """|predicted - real| / real of each wait that was long enough to be measured."""
        found = []
        for one in self.outcomes:
            words = dict(word.split("=") for word in one.queue.split(", ") if "=" in word)
            if "predicted" in words and (wait := float(words["wait"][:-2])) > _MIN_WAIT_MS:
                found.append(abs(float(words["predicted"][:-2]) - wait) / wait)
        return found


@contextlib.asynccontextmanager
async def stack(engine: Engine, **more: Any) -> AsyncIterator[tuple[RunningPods, RunningEdge]]:
    """Pods and an edge, with room for more than admission takes."""
    with running_pods(_PODS, **engine.settings, max_concurrent_requests=_SLOTS, **more) as pods:
        async with running_edge(pod_source=f"file:{pods.state_dir / 'pods.json'}", **_EDGE) as edge:
            await edge.until_healthy(*[f"engine-{number + 1}" for number in range(_PODS)])
            yield pods, edge


async def loads(engine: Engine, factors: Sequence[float], *, rate: float = 0.0, **more: Any) -> tuple[float, list[Seen]]:
    """The capacity, unless it is given, and one load after the other on the same pods."""
    seen = []
    async with stack(engine, **more) as (pods, edge):
        if not rate:
            await capacity(edge.url, _CLIENTS, LEAD_SECONDS)
            rate = await capacity(edge.url, _CLIENTS, engine.seconds)
        for factor in factors:
            stages = [poisson(rate * factor, LEAD_SECONDS), poisson(rate * factor, engine.seconds)]
            others = [os.getpid(), edge.processes["envoy"].pid]
            used, start = cpu_seconds(others), time.monotonic()
            outcomes = await run_load(edge.url, mix(engine.deadline), stages, seed=int(factor * 10), time_limit=engine.deadline * 4)
            resident = max(mebibytes(entry["pid"], "Rss") for entry in pods.entries)
            cores = (cpu_seconds(others) - used) / (time.monotonic() - start)
            seen.append(Seen(factor, outcomes, engine, resident, cores))
    return rate, seen


def _row(seen: Seen, what: str, peak: float, calm: Seen) -> list[str]:
    share = seen.good_tokens / peak
    others = ", ".join(f"{count} × {result}" for result, count in sorted(seen.results.items()) if result != "200")
    ttft, refused = f"{seen.ttft:.2f} s ({seen.ttft / max(calm.ttft, 1e-3):.1f}×)", f"{seen.refusal_ms:.0f} ms"
    if what == "on":
        share_word = verdict(share, GOODPUT_AIM, at_most=False) if seen.factor > 1 else f"{share:.2f}×"
        ttft += "" if seen.ttft <= TTFT_AIM * calm.ttft or seen.factor <= 1 else " **missed**"
        refused += "" if seen.refusal_ms <= REFUSAL_AIM_MS else " **missed**"
    else:
        share_word = f"{share:.2f}×"
    return [
        what,
        f"{seen.factor:g}×",
        f"{seen.good:.1f}/s",
        share_word,
        ttft,
        refused,
        str(seen.num_broken),
        f"{seen.resident_mib:.0f} MiB",
        f"{seen.cores:.2f}",
        others,
    ]


async def section(engine: Engine, *, factors: Sequence[float] = FACTORS) -> tuple[Section, list[Series]]:
    """One engine's table, and its lines."""
    rate, on = await loads(engine, factors)
    _, off = await loads(engine, [factor for factor in factors if factor >= 1], rate=rate, enable_backpressure=False)
    peak, calm = max(seen.good_tokens for seen in on), on[0]
    errors = [error for seen in on for error in seen.errors()]
    median = statistics.median(errors) if errors else 0.0
    table = Section(
        f"Past saturation, {engine.name}",
        [
            "admission",
            "load",
            "goodput",
            "tokens in time, of the best",
            "TTFT p95 of the accepted",
            "refused, p99",
            "broken",
            "memory",
            "cores of clients and Envoy",
            "others",
        ],
        [*[_row(seen, "on", peak, calm) for seen in on], *[_row(seen, "off", peak, calm) for seen in off]],
        f"Two pods of {_SLOTS} slots behind Envoy, JSON and streams of {MEAN_TOKENS:.0f} tokens on average, Poisson arrivals that do not "
        f"wait for answers. 1× is {rate:.1f} requests/s, as measured in a closed loop. A request counts if its answer is whole within "
        f"{engine.deadline:g} s, which it says (x-request-deadline-ms); of goodput the tokens are compared, since short answers are the "
        f"ones that can be in time when all wait. The clients run on the same cores. Each load ran {LEAD_SECONDS:g} s before it was "
        f"counted, for {engine.seconds:g} s. `off` is ENABLE_BACKPRESSURE=false. "
        f"Waits were predicted with a median error of {median:.0%} of {len(errors)} "
        f"(aim ≤ {ERROR_AIM:.0%}{'' if median <= ERROR_AIM else ', **missed**'}).",
    )
    lines = [
        Series(f"{engine.name}, admission {word}", [(seen.factor, seen.good_tokens / peak) for seen in found], is_dashed=word == "off")
        for word, found in (("on", on), ("off", off))
    ]
    return table, lines


async def measure() -> list[Section]:
    """Both engines, and the picture."""
    tables, lines = [], []
    for engine in ENGINES:
        table, series = await section(engine)
        tables.append(table)
        lines += series
    chart = line_chart(
        "Goodput past saturation",
        lines,
        Axis("load, as a multiple of the capacity", is_log=True, ticks=(0.9, 1, 2, 5, 10)),
        Axis("tokens in time, of the best", lower=0.0),
    )
    PICTURE.write_text(chart)
    tables[0].notes += "\n\n![Goodput against load](overload.svg)"
    return tables
