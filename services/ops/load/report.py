"""A load's report: figures by stage and over time, the limits it had to keep, as CSV, JSON and one page."""

from __future__ import annotations

import csv
import io
import math
import shlex
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from services.files import write_atomically
from services.ops.load.page import page
from services.ops.load.summary import Summary, figures, summarise

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from services.ops.load.arrivals import Stage
    from services.ops.load.outcome import Outcome

MOMENTS = 60
"""So many points over time, at most; none is shorter than a second."""
SECRETS = {"--api-key"}
"""Options whose values are not told."""
COLUMNS = ("stage", "seconds", "requests", "rps", "offered_rps", "error_rate", "p50_ms", "p95_ms", "p99_ms", "ttft_p95_ms", "gap_p95_ms")
"""Of the CSV; after them tokens_per_second, left and results."""


class Limits(Struct, frozen=True, kw_only=True):
    """What every stage must keep; None: anything goes."""

    max_error_rate: float | None = None
    max_p95_ms: float | None = None
    max_ttft_p95_ms: float | None = None
    min_rps: float | None = None
    min_tokens_per_second: float | None = None

    def missed(self, stages: Sequence[Summary]) -> list[str]:
        """What was not kept, and where, in words."""
        if not any(stage.requests for stage in stages):
            return ["no request was made"]
        found = []
        for stage in stages:
            for word, value, limit, is_most in (
                ("error rate", stage.error_rate, self.max_error_rate, True),
                ("p95 in ms", _ms(stage.latency.p95), self.max_p95_ms, True),
                ("TTFT p95 in ms", _ms(stage.ttft.p95), self.max_ttft_p95_ms, True),
                ("requests/s", stage.achieved, self.min_rps, False),
                ("tokens/s", stage.tokens_per_second, self.min_tokens_per_second, False),
            ):
                if limit is None:
                    continue
                if value is None:  # nothing was answered: that is no way to keep a limit
                    found.append(f"{stage.stage}: no {word}, must be {'at most' if is_most else 'at least'} {limit:g}")
                elif value > limit if is_most else value < limit:
                    found.append(f"{stage.stage}: {word} {value:.4g}, must be {'at most' if is_most else 'at least'} {limit:g}")
        return found


class Report(Struct, frozen=True, kw_only=True):
    """All that is told of a load. `moments` are the same figures over time, of equal lengths, named by their begin in seconds."""

    command: str
    url: str
    began_at: str
    limits: Limits
    missed: list[str]
    stages: list[Summary]
    moments: list[Summary]
    kinds: list[Summary]
    """The same by kind of request, over the whole load."""


def make(  # noqa: PLR0913 - what is told
    outcomes: Sequence[Outcome],
    stages: Sequence[Stage],
    limits: Limits,
    *,
    command: str,
    url: str,
    began_at: str,
    deadline: float | None = None,
) -> Report:
    """The report of a load that is over; `command` is what made it, and holds no secret."""
    total = sum(stage.seconds for stage in stages)
    by_stage = summarise(outcomes, stages, deadline=deadline)
    kinds = sorted({outcome.kind for outcome in outcomes})
    return Report(
        command=command,
        url=url,
        began_at=began_at,
        limits=limits,
        missed=limits.missed(by_stage),
        stages=by_stage,
        moments=_moments(outcomes, total),
        kinds=[figures([outcome for outcome in outcomes if outcome.kind == kind], kind, total, deadline) for kind in kinds],
    )


def write(report: Report, folder: Path) -> None:
    """Writes stages.csv, load.json and index.html."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "stages.csv", as_csv(report.stages).encode())
    write_atomically(folder / "load.json", msgspec.json.format(msgspec.json.encode(report)))
    write_atomically(folder / "index.html", page(report).encode())


def command_line(words: Sequence[str]) -> str:
    """A command to be typed again, without its secrets."""
    shown, before = [], ""
    for word in words:
        name, sign, _ = word.partition("=")
        shown.append("…" if before in SECRETS else f"{name}=…" if sign and name in SECRETS else shlex.quote(word))
        before = word
    return " ".join(shown)


def as_csv(stages: Sequence[Summary]) -> str:
    """A line for each stage; a cell is empty where there is no such figure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, "tokens_per_second", "left", "results"])
    for stage in stages:
        latency, results = stage.latency, "; ".join(f"{result}: {count}" for result, count in stage.results.items())
        rates = (stage.seconds, stage.requests, stage.achieved, stage.offered, stage.error_rate)
        times = (latency.p50, latency.p95, latency.p99, stage.ttft.p95, stage.gap.p95)
        cells = [*(_cell(value) for value in rates), *(_cell(_ms(value)) for value in times), _cell(stage.tokens_per_second)]
        writer.writerow([stage.stage, *cells, stage.left, results])
    return text.getvalue()


def _moments(outcomes: Sequence[Outcome], total: float) -> list[Summary]:
    width = max(1, math.ceil(total / MOMENTS))
    parts: list[list[Outcome]] = [[] for _ in range(math.ceil(total / width))]
    for outcome in outcomes:
        parts[min(len(parts) - 1, int(outcome.intended / width))].append(outcome)
    return [figures(part, str(number * width), min(width, total - number * width)) for number, part in enumerate(parts)]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
