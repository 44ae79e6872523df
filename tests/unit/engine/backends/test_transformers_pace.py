"""How much of a prompt is read between two steps, and which rows share a pass."""

from __future__ import annotations

from services.engine.backends.transformers.pace import PrefillPace, alike


def test_a_prompt_takes_little_more_than_a_step_at_a_time() -> None:
    """At most what is allowed, fewer as reading gets dearer, never so few that it does not come to its end."""
    pace = PrefillPace()
    assert pace.budget(256) == 256
    pace.decoded(0.010)
    pace.read(256, 0.0256)
    assert pace.budget(256) == 130
    for _ in range(50):
        pace.read(100, 0.1)
    assert pace.budget(256) == 16


def test_a_long_row_does_not_slow_short_ones() -> None:
    """It has a pass of its own where that is cheaper; rows that are alike share one."""
    assert alike([40] * 32) == [(0, 32)]
    assert alike([10, 80, 30]) == [(0, 3)]
    assert alike([40] * 20 + [1500] + [40] * 11) == [(0, 20), (20, 21), (21, 32)]
    assert alike([1500] + [40] * 31) == [(0, 1), (1, 32)]
    assert alike([3000, 40]) == [(0, 2)]
