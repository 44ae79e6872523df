from __future__ import annotations

import random
import statistics
from itertools import pairwise

import pytest

from services.ops.load.arrivals import Stage, moments, poisson, ramp, spike, steady, steps
from services.ops.load.kinds import chat, completion, plan


def times(*stages: Stage, seed: int = 1) -> list[float]:
    """The intended begins of a load."""
    return [at for _, at in moments(stages, random.Random(seed))]


def test_steady_requests_begin_at_equal_distances() -> None:
    """Ten a second for two seconds: one each 0.1 s, the first at once, none at the end."""
    assert times(steady(10, 2)) == pytest.approx([count / 10 for count in range(20)])


def test_poisson_has_the_rate_and_the_spread_of_independent_users() -> None:
    """The distances have the mean 1/rate, and a standard deviation as large as their mean."""
    begins = times(poisson(50, 200))
    gaps = [after - before for before, after in pairwise(begins)]
    assert len(begins) == pytest.approx(10_000, rel=0.04)
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)


@pytest.mark.parametrize("arrivals", ["poisson", "steady"])
def test_a_ramp_grows_in_a_straight_line(arrivals: str) -> None:
    """From 0 to 100 a second in 100 s: a quarter of the requests begin in the first half."""
    begins = times(*ramp(0, 100, 100, arrivals="poisson" if arrivals == "poisson" else "steady"))
    assert len(begins) == pytest.approx(5000, rel=0.05)
    assert sum(at < 50 for at in begins) == pytest.approx(1250, rel=0.1)
    assert begins == sorted(begins)
    assert 0 <= begins[0] <= begins[-1] < 100


def test_a_falling_ramp_ends_at_nothing() -> None:
    """From 100 to 0: three quarters begin in the first half."""
    begins = times(*ramp(100, 0, 10, arrivals="steady"))
    assert len(begins) == 500
    assert sum(at < 5 for at in begins) == pytest.approx(375, abs=2)


def test_stages_follow_each_other() -> None:
    """A spike's requests begin in its own seconds; a stage without requests takes its time, too."""
    stages = [*spike(10, 200, (5, 2, 5)), *steps([0, 30], 4)]
    of = [(stage, at) for stage, at in moments(stages, random.Random(2))]
    bounds = [0, 5, 7, 12, 16, 20]
    assert all(bounds[stage] <= at < bounds[stage + 1] for stage, at in of)
    counts = [sum(stage == number for stage, _ in of) for number in range(5)]
    assert counts == pytest.approx([50, 400, 50, 0, 120], rel=0.35)
    assert [stage.label for stage in stages] == ["before", "spike", "after", "0/s", "30/s"]


def test_the_same_seed_makes_the_same_load() -> None:
    """Moments, kinds and bodies; another seed another load, another mix the same moments."""
    mix = [chat(prompts=("a", "b"), weight=3), completion(weight=1)]
    stages = [poisson(100, 10)]
    one = plan(mix, stages, 7)
    assert one == plan(mix, stages, 7)
    assert one != plan(mix, stages, 8)
    assert [request.at for request in plan([chat()], stages, 7)] == [request.at for request in one]
    shares = [request.kind.name for request in one]
    assert shares.count("chat json") / len(shares) == pytest.approx(0.75, abs=0.06)
    assert {request.body for request in one} == {body for kind in mix for body in kind.bodies}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Stage(1, 0), "seconds"),
        (lambda: Stage(-1, 5), "rate"),
        (lambda: Stage(1, 5, end_rate=-2), "end_rate"),
        (lambda: plan([], [poisson(1, 1)], 0), "mix"),
        (lambda: plan([chat(), chat()], [poisson(1, 1)], 0), "mix"),
        (lambda: chat(weight=0), "weight"),
        (lambda: chat(prompts=()), "bodies"),
        (lambda: chat(leave_after_tokens=3), "leave_after_tokens"),
        (lambda: chat(leave_after_seconds=0), "leave_after_seconds"),
    ],
)
def test_what_no_load_can_be_is_named(make: object, named: str) -> None:
    """A mistake is told by the parameter's name."""
    assert callable(make)
    with pytest.raises(ValueError, match=named):
        make()
