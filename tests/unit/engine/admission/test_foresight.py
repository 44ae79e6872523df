"""What is learnt of the engine, of answers and of clients that return."""

from __future__ import annotations

import random

import pytest

from services.engine.admission.lengths import Lengths
from services.engine.admission.pace import Pace
from services.engine.admission.standing import StandingQueue


def test_an_answer_is_as_long_as_answers_are() -> None:
    """Not as long as it may be; one that has come so far is at least so long, and those cut off were longer than they look."""
    lengths = Lengths()
    assert lengths.expected("a", 500) is None
    for number in (10, 20, 30, 40):
        lengths.add("a", number, is_whole=True)
    assert lengths.expected("a", 500) == 25
    assert lengths.expected("a", 15) == (10 + 15 * 3) / 4
    assert lengths.expected("a", 500, so_far=25) == 35
    assert lengths.expected("a", 500, so_far=40) == 500
    lengths.add("a", 16, is_whole=False)
    assert lengths.expected("a", 100) == (10 + 20 + 30 + 40 + 100) / 5


def test_a_client_with_a_history_is_judged_by_its_own() -> None:
    """Others' answers count only until it has had enough."""
    lengths = Lengths()
    for _ in range(300):
        lengths.add("short", 10, is_whole=True)
    for _ in range(8):
        lengths.add("long", 90, is_whole=True)
    assert lengths.expected("long", 1000) == 90
    assert (lengths.expected("new", 1000) or 0) < 15


@pytest.mark.parametrize("rows", [1, 8])
def test_the_pace_is_what_one_request_feels(rows: int) -> None:
    """So many rows, each with a token every 20 ms: 20 ms a token, whatever the number; half a second later it has followed to 40 ms."""
    pace, now = Pace(), 0.0
    for _ in range(rows):
        pace.first_token(now, 100, 0.05)
    for milliseconds, steps in ((20, 400), (40, 400)):
        for _ in range(steps):
            now += milliseconds / 1000
            for _ in range(rows):
                pace.tokens(now, 1)
        assert pace.token_seconds() == pytest.approx(milliseconds / 1000, rel=0.05)


def test_a_longer_prompt_takes_longer() -> None:
    """10 ms and 0.1 ms a token, with noise."""
    pace, chance = Pace(), random.Random(1)
    for number in range(100):
        prompt = chance.randint(10, 2000)
        pace.first_token(float(number), prompt, (0.01 + prompt * 1e-4) * chance.uniform(0.9, 1.1))
    assert pace.prefill_seconds(1000) == pytest.approx(0.11, rel=0.1)
    assert pace.prefill_seconds(10) < 0.03


def test_a_burst_may_wait_and_a_standing_queue_may_not() -> None:
    """Answers take 5 s: a burst may wait for the queue's limit; a wait that stays above 4 s is cut to it, until it has gone as long."""
    standing = StandingQueue(10.0)
    standing.held(5.0)
    assert standing.max_wait(0.0, now=0.0) == 10
    assert standing.max_wait(6.0, now=1.0) == 10
    assert standing.max_wait(6.0, now=5.1) == 4
    assert standing.max_wait(3.9, now=6.0) == 4, "admission itself keeps it there"
    assert standing.max_wait(0.1, now=19.0) == 4, "a moment without is not the end of it"
    assert standing.max_wait(3.9, now=20.0) == 4
    assert standing.max_wait(0.1, now=21.0) == 4
    assert standing.max_wait(0.1, now=25.1) == 10
