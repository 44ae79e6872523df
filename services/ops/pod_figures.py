"""What a pod's /metrics say of the last moments: counters and histograms at several looks become rates and quantiles. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

WINDOW_SECONDS = 30.0
"""How far back errors and time to first token are looked at."""


class Sample(Struct, frozen=True, kw_only=True):
    """One pod's metrics at one moment. `requests` by class of status; `first_token` are cumulative counts by upper bound in seconds."""

    requests: dict[str, float]
    first_token: dict[float, float]
    rejected: float
    engine_errors: float
    in_progress: float
    queue: float
    queue_capacity: float
    slots_in_use: float
    slots: float
    tokens_per_second: float
    cpu_seconds: float
    memory_bytes: float


class Figures(Struct, frozen=True, kw_only=True):
    """A row of the table. Rates are None before a second look at the same process; so is a quantile of nothing.

    `is_first_token_recent`: over the window, otherwise since the pod's start.
    """

    in_progress: float
    queue: float
    queue_capacity: float
    slots_in_use: float
    slots: float
    tokens_per_second: float
    memory_bytes: float
    requests_per_second: float | None
    cpu_percent: float | None
    first_token_p95: float | None
    is_first_token_recent: bool
    server_errors: float
    engine_errors: float
    rejected: float


def parse(text: str) -> Sample:
    """Reads Prometheus' text format; a metric that is missing counts as 0. Raises `ValueError` for other text."""
    totals: defaultdict[str, float] = defaultdict(float)
    requests: defaultdict[str, float] = defaultdict(float)
    first_token: defaultdict[float, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            totals[sample.name] += sample.value
            if sample.name == "llm_requests_total":
                requests[sample.labels.get("status", "")] += sample.value
            elif sample.name == "llm_time_to_first_token_seconds_bucket":
                first_token[float(sample.labels["le"])] += sample.value
    return Sample(
        requests=dict(requests),
        first_token=dict(first_token),
        rejected=totals["llm_admission_rejected_total"],
        engine_errors=totals["llm_engine_errors_total"],
        in_progress=totals["llm_requests_in_progress"],
        queue=totals["llm_queue_depth"],
        queue_capacity=totals["llm_queue_capacity"],
        slots_in_use=totals["llm_slots_in_use"],
        slots=totals["llm_slots"],
        tokens_per_second=totals["llm_tokens_per_second"],
        cpu_seconds=totals["process_cpu_seconds_total"],
        memory_bytes=totals["process_resident_memory_bytes"],
    )


class Look(Struct, frozen=True):
    """A pod's process at one moment, in seconds of any clock that never jumps."""

    at: float
    sample: Sample


def figures(looks: Sequence[Look]) -> Figures:
    """The row of one pod's process from its looks, oldest first, at least one."""
    now, before = looks[-1], looks[-2] if len(looks) > 1 else None
    oldest = _oldest(looks)
    seconds = now.at - before.at if before else 0.0
    recent = _recent(looks)
    is_recent = _is_any(recent)
    return Figures(
        in_progress=now.sample.in_progress,
        queue=now.sample.queue,
        queue_capacity=now.sample.queue_capacity,
        slots_in_use=now.sample.slots_in_use,
        slots=now.sample.slots,
        tokens_per_second=now.sample.tokens_per_second,
        memory_bytes=now.sample.memory_bytes,
        requests_per_second=(_sum(now) - _sum(before)) / seconds if before and seconds else None,
        cpu_percent=100 * (now.sample.cpu_seconds - before.sample.cpu_seconds) / seconds if before and seconds else None,
        first_token_p95=quantile(0.95, recent if is_recent else now.sample.first_token),
        is_first_token_recent=is_recent,
        server_errors=now.sample.requests.get("5xx", 0) - oldest.sample.requests.get("5xx", 0),
        engine_errors=now.sample.engine_errors - oldest.sample.engine_errors,
        rejected=now.sample.rejected - oldest.sample.rejected,
    )


def total(pods: Iterable[Sequence[Look]]) -> Figures:
    """The sum over all pods; its quantile is that of all their requests together, for quantiles cannot be added."""
    pods = list(pods)
    rows = [figures(looks) for looks in pods]
    recent, ever = _added(_recent(looks) for looks in pods), _added(looks[-1].sample.first_token for looks in pods)
    is_recent = _is_any(recent)
    rates = [row.requests_per_second for row in rows if row.requests_per_second is not None]
    shares = [row.cpu_percent for row in rows if row.cpu_percent is not None]
    return Figures(
        in_progress=sum(row.in_progress for row in rows),
        queue=sum(row.queue for row in rows),
        queue_capacity=sum(row.queue_capacity for row in rows),
        slots_in_use=sum(row.slots_in_use for row in rows),
        slots=sum(row.slots for row in rows),
        tokens_per_second=sum(row.tokens_per_second for row in rows),
        memory_bytes=sum(row.memory_bytes for row in rows),
        requests_per_second=sum(rates) if rates else None,
        cpu_percent=sum(shares) if shares else None,
        first_token_p95=quantile(0.95, recent if is_recent else ever),
        is_first_token_recent=is_recent,
        server_errors=sum(row.server_errors for row in rows),
        engine_errors=sum(row.engine_errors for row in rows),
        rejected=sum(row.rejected for row in rows),
    )


def quantile(share: float, counts: Mapping[float, float]) -> float | None:
    """As Prometheus' `histogram_quantile`: linear within a bucket; the highest bound for what lies above it; None of nothing."""
    bounds = sorted(counts)
    if not bounds or counts[bounds[-1]] <= 0:
        return None
    rank, below, lower = share * counts[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        if counts[bound] >= rank:
            return lower if math.isinf(bound) else lower + (bound - lower) * (rank - below) / (counts[bound] - below)
        below, lower = counts[bound], bound
    return lower


def _oldest(looks: Sequence[Look]) -> Look:
    """The first look of the window."""
    return next(look for look in looks if looks[-1].at - look.at <= WINDOW_SECONDS)


def _recent(looks: Sequence[Look]) -> dict[float, float]:
    """The window's part of the histogram."""
    before = _oldest(looks).sample.first_token
    return {bound: count - before.get(bound, 0) for bound, count in looks[-1].sample.first_token.items()}


def _is_any(counts: Mapping[float, float]) -> bool:
    return max(counts.values(), default=0) > 0


def _added(histograms: Iterable[Mapping[float, float]]) -> dict[float, float]:
    added: defaultdict[float, float] = defaultdict(float)
    for counts in histograms:
        for bound, count in counts.items():
            added[bound] += count
    return dict(added)


def _sum(look: Look) -> float:
    return sum(look.sample.requests.values())
