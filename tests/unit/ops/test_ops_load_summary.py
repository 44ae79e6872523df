from __future__ import annotations

from typing import Any

import pytest

from services.ops.load.arrivals import steady
from services.ops.load.outcome import Outcome
from services.ops.load.summary import Quantiles, figures, percentile, quantiles, summarise


def outcome(intended: float, seconds: float, **more: Any) -> Outcome:
    """A whole answer, unless it is said otherwise."""
    usual: dict[str, Any] = {"kind": "chat json", "stage": 0, "sent": intended, "status": 200, "is_whole": True, "tokens": 10}
    return Outcome(**usual | {"intended": intended, "ended": intended + seconds} | more)


def test_percentiles_are_values_that_were_seen() -> None:
    """By nearest rank: of 1 to 100 the 95th is 95."""
    values = [float(value) for value in range(1, 101)]
    assert quantiles(reversed(values)) == Quantiles(50, 95, 99, 100)
    assert quantiles([3.0]) == Quantiles(3, 3, 3, 3)
    assert quantiles([]) == Quantiles(None, None, None, None)
    assert [percentile([1.0, 2.0], share) for share in (0.0, 0.5, 0.51, 1.0)] == [1, 1, 2, 2]


def test_goodput_is_what_came_within_the_deadline() -> None:
    """Counted from the intended begin, so that a client which was late itself does not hide a wait."""
    found = figures([outcome(0, 0.5), outcome(1, 1.0), outcome(2, 1.1), outcome(3, 0.9, sent=3.8, ended=4.7)], "", 4, deadline=1.0)
    assert (found.offered, found.achieved, found.goodput) == (1, 1, 0.5)
    assert found.latency.max == pytest.approx(1.7)
    assert found.lag_p99 == pytest.approx(0.8)
    assert figures([outcome(0, 9)], "", 1).goodput == 1


def test_what_was_not_answered_is_counted_by_its_reason() -> None:
    """By status and code; who left is neither answered nor failed, and refusals' times are their own."""
    refused = {"status": 429, "code": "queue_full", "is_whole": False, "tokens": 0}
    found = figures(
        [
            outcome(0, 2),
            outcome(0, 0.01, **refused),
            outcome(0, 0.02, **refused),
            outcome(0, 1, status=0, code="connection_broken", is_whole=False, tokens=3),
            outcome(0, 1, is_whole=False, tokens=4),
            outcome(0, 1, is_whole=False, has_left=True, tokens=5),
        ],
        "",
        2,
    )
    assert found.results == {"0 connection_broken": 1, "200": 1, "200 cut_off": 1, "429 queue_full": 2, "left": 1}
    assert (found.requests, found.left, found.error_rate, found.achieved) == (6, 1, 0.8, 0.5)
    assert (found.latency.p50, found.failed.p50) == (2, 0.02)
    assert found.tokens_per_second == 11


def test_streams_have_their_own_figures() -> None:
    """First token from the intended begin; gaps over all streams; JSON answers have neither."""
    found = figures([outcome(1, 3, is_stream=True, first_token=1.25, gaps=(0.1, 0.3)), outcome(1, 3)], "", 1)
    assert (found.ttft.p50, found.ttft.max) == (0.25, 0.25)
    assert (found.gap.p50, found.gap.max) == (0.1, 0.3)


def test_a_request_belongs_to_the_stage_in_which_it_was_due() -> None:
    """Even if its answer comes in a later one; a stage without requests has no figures, and no error."""
    stages = [steady(1, 2, "first"), steady(0, 5, "idle"), steady(2, 1, "last")]
    first, idle, last = summarise([outcome(1.9, 30), outcome(7.1, 1, stage=2), outcome(7.6, 1, stage=2)], stages)
    assert (first.stage, first.requests, first.achieved) == ("first", 1, 0.5)
    assert (idle.requests, idle.error_rate, idle.latency.p50, idle.lag_p99) == (0, 0, None, None)
    assert (last.requests, last.achieved) == (2, 2)
