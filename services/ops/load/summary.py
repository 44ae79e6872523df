"""The figures of a load, stage by stage. Pure."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from services.ops.load.arrivals import Stage
    from services.ops.load.outcome import Outcome


class Quantiles(Struct, frozen=True):
    """Seconds. Each is a value that was seen (nearest rank); all None where nothing was."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None


class Summary(Struct, frozen=True, kw_only=True):
    """One stage. A request belongs to the stage in which it was due, whenever its answer came; rates are per second of the stage.

    `achieved` counts whole answers, `goodput` those of them within the deadline (all, if there is none). `error_rate` is the share of the
    requests without a whole answer, among those whose client did not leave. `failed` are the latencies of these.
    """

    stage: str
    seconds: float
    requests: int
    offered: float
    achieved: float
    goodput: float
    error_rate: float
    left: int
    results: dict[str, int]
    latency: Quantiles
    ttft: Quantiles
    gap: Quantiles
    failed: Quantiles
    tokens_per_second: float
    lag_p99: float | None
    """How late the client itself was: where this is not far below the latencies, they are the client's."""


def summarise(outcomes: Sequence[Outcome], stages: Sequence[Stage], *, deadline: float | None = None) -> list[Summary]:
    """The figures of each stage; `deadline` in seconds from the intended begin."""
    by_stage: list[list[Outcome]] = [[] for _ in stages]
    for outcome in outcomes:
        by_stage[outcome.stage].append(outcome)
    return [figures(of, stage.label, stage.seconds, deadline) for of, stage in zip(by_stage, stages, strict=True)]


def figures(outcomes: Sequence[Outcome], name: str, seconds: float, deadline: float | None = None) -> Summary:
    """The figures of some requests that were due within so many seconds."""
    stayed = [outcome for outcome in outcomes if not outcome.has_left]
    whole = [outcome for outcome in stayed if outcome.is_whole]
    good = whole if deadline is None else [outcome for outcome in whole if outcome.latency <= deadline]
    return Summary(
        stage=name,
        seconds=seconds,
        requests=len(outcomes),
        offered=len(outcomes) / seconds,
        achieved=len(whole) / seconds,
        goodput=len(good) / seconds,
        error_rate=1 - len(whole) / len(stayed) if stayed else 0.0,
        left=len(outcomes) - len(stayed),
        results=dict(sorted(Counter(outcome.result for outcome in outcomes).items())),
        latency=quantiles(outcome.latency for outcome in whole),
        ttft=quantiles(outcome.ttft for outcome in whole if outcome.ttft is not None),
        gap=quantiles(gap for outcome in whole for gap in outcome.gaps),
        failed=quantiles(outcome.latency for outcome in stayed if not outcome.is_whole),
        tokens_per_second=sum(outcome.tokens for outcome in outcomes) / seconds,
        lag_p99=quantiles(outcome.lag for outcome in outcomes).p99,
    )


def quantiles(values: Iterable[float]) -> Quantiles:
    """Median, 95th and 99th percentile, and the greatest."""
    ordered = sorted(values)
    return Quantiles(*(percentile(ordered, share) for share in (0.5, 0.95, 0.99, 1.0))) if ordered else Quantiles()


def percentile(ordered: Sequence[float], share: float) -> float:
    """The least of the sorted values that is not below so great a share of them."""
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]
