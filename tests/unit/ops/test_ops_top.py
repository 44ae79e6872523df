from __future__ import annotations

import io

import pytest
from prometheus_client import generate_latest
from rich.console import Console

from services.ops.pod_figures import Look, figures, parse, quantile, total
from services.ops.probe import Readiness
from services.ops.state import Run
from services.ops.top import Watcher, head, table
from services.pods_file import PodEntry
from services.telemetry.metrics import Metrics

ONE = PodEntry(name="engine-1", host="127.0.0.1", port=1, pid=7)
TWO = PodEntry(name="engine-2", host="127.0.0.1", port=2, pid=8, restarts=3)
READY = Readiness(state="ready")


class Pod:
    """A pod's metrics, declared as the pods declare them."""

    def __init__(self) -> None:
        """Has done nothing yet."""
        self.metrics = Metrics("demo")
        self.metrics.slots.set(16)
        self.metrics.queue_capacity.set(64)

    def answer(self, times: int, seconds: float, status: str = "2xx") -> None:
        """Answers requests, each with its first token after `seconds`."""
        self.metrics.requests.labels("demo", "/chat", status).inc(times)
        for _ in range(times):
            self.metrics.first_token.observe(seconds)

    @property
    def text(self) -> str:
        """What /metrics says."""
        return generate_latest(self.metrics.registry).decode()


def shown(watcher: Watcher, pods: list[PodEntry], width: int = 200) -> list[str]:
    """The table's lines."""
    console = Console(file=io.StringIO(), width=width)
    console.print(table(pods, [READY] * len(pods), watcher, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_two_looks_make_rates() -> None:
    """Requests a second and errors are what came between; slots and queue are as they are now."""
    pod = Pod()
    pod.answer(100, 0.03)
    before = Look(10, parse(pod.text))
    pod.answer(8, 0.2)
    pod.answer(2, 0.2, "5xx")
    pod.metrics.engine_errors.inc()
    pod.metrics.rejected.labels("demo", "queue_full").inc(4)
    pod.metrics.slots_in_use.set(3)
    pod.metrics.queue_depth.set(5)
    pod.metrics.tokens_per_second.set(120)
    row = figures([before, Look(12, parse(pod.text))])
    assert row.requests_per_second == 5
    assert (row.server_errors, row.engine_errors, row.rejected) == (2, 1, 4)
    assert (row.slots_in_use, row.slots, row.queue, row.queue_capacity, row.tokens_per_second) == (3, 16, 5, 64, 120)
    assert row.is_first_token_recent
    assert row.first_token_p95 == pytest.approx(0.2425)  # within 0.1 and 0.25 s, the bucket of 0.2
    assert row.memory_bytes > 0


def test_the_first_look_knows_no_rate() -> None:
    """Nor whether an error is recent; times to first token are those since the start, and say so."""
    pod = Pod()
    pod.answer(10, 0.2, "5xx")
    row = figures([Look(10, parse(pod.text))])
    assert (row.requests_per_second, row.cpu_percent, row.server_errors, row.is_first_token_recent) == (None, None, 0, False)
    assert row.first_token_p95 == pytest.approx(0.2425)
    assert figures([Look(10, parse(Pod().text))]).first_token_p95 is None


def test_what_is_older_than_the_window_is_forgotten() -> None:
    """An error counts for 30 s."""
    pod, watcher = Pod(), Watcher()
    watcher.look([ONE], [pod.text], 0)
    pod.answer(1, 0.2, "5xx")
    watcher.look([ONE], [pod.text], 1)
    assert figures(watcher.of(ONE)).server_errors == 1
    watcher.look([ONE], [None], 20)
    assert len(watcher.of(ONE)) == 2, "a pod that does not answer for a moment is still known"
    watcher.look([ONE], [pod.text], 32)
    assert figures(watcher.of(ONE)).server_errors == 0


def test_the_total_is_of_all_requests() -> None:
    """Nine in ten requests are fast on one pod: the 95th percentile of all lies between those of the pods."""
    fast, slow, watcher = Pod(), Pod(), Watcher()
    watcher.look([ONE, TWO], [fast.text, slow.text], 0)
    fast.answer(90, 0.02)
    slow.answer(10, 2)
    watcher.look([ONE, TWO], [fast.text, slow.text], 1)
    row = total([watcher.of(ONE), watcher.of(TWO)])
    assert row.requests_per_second == 100
    assert row.slots == 32
    assert row.first_token_p95 == pytest.approx(1.5)
    lines = shown(watcher, [ONE, TWO])
    assert [line.split()[0] for line in lines] == ["pod", "engine-1", "engine-2", "total"]
    assert lines[3].split()[:7] == ["total", "100", "0", "0/128", "0/32", "0", "1500"]
    assert lines[2].split()[-5] == lines[3].split()[-5] == "3", "restarts"


def test_a_restarted_pod_begins_at_zero() -> None:
    """Its counters fell: it is another process, of which no rate is known yet."""
    pod, watcher = Pod(), Watcher()
    pod.answer(50, 0.2)
    watcher.look([ONE], [pod.text], 0)
    again = PodEntry(name="engine-1", host="127.0.0.1", port=3, pid=9, restarts=1)
    watcher.look([again], [Pod().text], 1)
    assert figures(watcher.of(again)).requests_per_second is None
    assert watcher.of(ONE) == []


def test_a_pod_that_has_never_answered_has_a_row() -> None:
    """With its state and nothing else."""
    watcher = Watcher()
    watcher.look([ONE], [None], 0)
    assert shown(watcher, [ONE])[1].split() == ["engine-1", "ready", *"-" * 7, "0", "-", "-"]


def test_a_narrow_terminal_gets_fewer_columns() -> None:
    """Whole ones, the most telling; no cell is cut."""
    pod, watcher = Pod(), Watcher()
    watcher.look([ONE], [pod.text], 0)
    head_line, row = shown(watcher, [ONE], 80)
    assert "errors" in head_line
    assert "memory" not in head_line
    assert len(row.rstrip()) <= 80
    assert "…" not in head_line + row


def test_errors_are_named() -> None:
    """What the client was told, what the engine broke, what was refused."""
    pod, watcher = Pod(), Watcher()
    watcher.look([ONE], [pod.text], 0)
    pod.answer(2, 0.1, "5xx")
    pod.metrics.rejected.labels("demo", "queue_full").inc(5)
    watcher.look([ONE], [pod.text], 1)
    assert "2 × 5xx, 5 refused" in shown(watcher, [ONE])[1]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({}, None),
        ({1.0: 0, float("inf"): 0}, None),
        ({1.0: 100, 2.0: 100, float("inf"): 100}, 0.95),
        ({1.0: 90, 2.0: 100, float("inf"): 100}, 1.5),
        ({1.0: 0, float("inf"): 10}, 1.0),
    ],
)
def test_quantiles_are_those_of_prometheus(counts: dict[float, float], expected: float | None) -> None:
    """Linear within a bucket; above the highest bound nothing is known but that bound."""
    assert quantile(0.95, counts) == (expected if expected is None else pytest.approx(expected))


def test_the_head_says_where_and_how_long() -> None:
    """Address, uptime, how many pods take requests."""
    run = Run("http://127.0.0.1:8000", "127.0.0.1", 8000, 1, 2, 100, "fake", "demo", 2, 30)
    assert head(run, [READY, Readiness(state="loading")], 300).plain == "http://127.0.0.1:8000 · up 3 min · 1 of 2 pods ready"
