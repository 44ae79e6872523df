"""The pod's states: what may follow what, and what each means for requests."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from services.engine.health import FOLLOWS, Health, State
from services.openai.errors import Draining, NotReady
from services.telemetry.metrics import POD_STATES

WAYS: dict[str, list[State]] = {
    "loading": [],
    "warming": ["warming"],
    "ready": ["warming", "ready"],
    "stalled": ["warming", "ready", "stalled"],
    "draining": ["warming", "ready", "draining"],
    "stopped": ["warming", "ready", "draining", "stopped"],
}


def health_in(state: str) -> Health:
    """A pod's health that came to `state` on the usual way."""
    health = Health()
    for step in WAYS[state]:
        assert health.become(step)
    return health


@pytest.mark.parametrize("before", WAYS)
def test_only_what_may_follow_does(before: State) -> None:
    """Every pair of states: allowed ones are taken, the others change nothing."""
    for after in get_args(State):
        health = health_in(before)
        assert health.become(after) == (after in FOLLOWS[before])
        assert health.state == (after if after in FOLLOWS[before] else before)


def test_metrics_know_every_state() -> None:
    """The gauge has a series for each."""
    assert get_args(State) == POD_STATES == tuple(FOLLOWS)


@pytest.mark.parametrize(
    ("state", "refusal", "status"),
    [
        ("loading", NotReady, 503),
        ("warming", NotReady, 503),
        ("ready", None, 200),
        ("stalled", NotReady, 503),
        ("draining", None, 503),
        ("stopped", Draining, 503),
    ],
)
def test_a_state_says_who_is_taken(state: str, refusal: type[Exception] | None, status: int) -> None:
    """A pod that drains is not ready and still takes what comes, until it is told to refuse."""
    health = health_in(state)
    told, body = health.readiness("engine-1")
    assert (told, body["state"]) == (status, state)
    if refusal is None:
        health.check_ready()
        health.refuse()
        refusal = Draining
    with pytest.raises(refusal):
        health.check_ready()


@pytest.mark.parametrize("way", [["draining"], ["warming", "draining"]])
def test_a_pod_that_never_was_ready_refuses_when_it_drains(way: list[Any]) -> None:
    """It has no model to answer with."""
    health = Health()
    for state in way:
        assert health.become(state)
    with pytest.raises(Draining):
        health.check_ready()
