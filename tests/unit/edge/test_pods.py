"""What the edge concludes from pods' answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.edge.files import EnvoyFiles
from services.edge.pods import Pod, RetryRule, endpoints_in, endpoints_of, known_state
from services.edge.rendering import endpoints
from services.pods_file import PodEntry

if TYPE_CHECKING:
    from services.edge.pods import Answer, State


def _pod(name: str, port: int, state: State, started_at: float = 0.0) -> Pod:
    return Pod(PodEntry(name=name, host="127.0.0.1", port=port, started_at=started_at), state)


@pytest.mark.parametrize(
    ("answers", "state"),
    [
        (["ready"], "ready"),
        (["loading", "ready"], "ready"),
        (["ready", "draining"], "draining"),
        (["ready", "silent", "silent", "silent", "silent", "silent"], "ready"),
        (["ready", "refused", "refused"], "ready"),
        (["ready", "refused", "refused", "silent", "refused", "refused"], "ready"),
        (["ready", "refused", "refused", "refused"], "gone"),
        (["ready", "refused", "refused", "refused", "ready"], "ready"),
        (["ready", "foreign"], "foreign"),
    ],
)
def test_pod_state_follows_answers_without_flapping(answers: list[Answer], state: State) -> None:
    """A pod counts as what it said last; silence changes nothing, three refusals in a row take it out."""
    pod = _pod("engine-1", 1, "unknown")
    for answer in answers:
        pod.hear(answer)
    assert pod.state == state


def test_endpoints_are_ready_and_draining_pods_by_number() -> None:
    """Envoy learns ready and draining pods only, engine-10 after engine-9, each under its own name."""
    states: list[State] = ["ready", "draining", "loading", "gone", "unknown", "foreign"]
    pods = [_pod(f"engine-{12 - number}", number + 1, state) for number, state in enumerate(states)] + [_pod("engine-2", 99, "ready")]
    found = [(one.name, one.health, one.hash_key) for one in endpoints_of(pods)]
    assert found == [("engine-2", "HEALTHY", "engine-2"), ("engine-11", "DRAINING", "engine-11"), ("engine-12", "HEALTHY", "engine-12")]


def test_endpoints_of_one_name_have_keys_of_their_own() -> None:
    """While old and new process of a pod are both there, the new one keeps the name's place on a hash ring."""
    pods = [_pod("engine-1", 1, "draining", 100.0), _pod("engine-1", 2, "ready", 200.0), _pod("engine-1", 3, "ready", 150.0)]
    keys = {one.port: one.hash_key for one in endpoints_of(pods)}
    assert keys == {2: "engine-1", 3: "engine-1@127.0.0.1:3", 1: "engine-1@127.0.0.1:1"}


def test_new_edge_reads_back_what_the_last_one_wrote() -> None:
    """What was rendered says enough for the next edge to render the same."""
    written = endpoints_of([_pod("engine-1", 1, "ready"), _pod("engine-2", 2, "draining")])
    read = endpoints_in(endpoints(EnvoyFiles.load(), written))
    assert read == written
    assert [known_state(_pod(f"engine-{port}", port, "unknown").entry, read) for port in (1, 2, 3)] == ["ready", "draining", "unknown"]


def test_pod_on_another_port_is_not_known() -> None:
    """A pod that came back elsewhere must say ready first."""
    known = endpoints_of([_pod("engine-1", 1, "ready")])
    assert known_state(_pod("engine-1", 2, "unknown").entry, known) == "unknown"


def test_retry_rule_waits_before_it_takes_retries_away() -> None:
    """One pod alone for long gets no retries; a moment alone, as in a restart, changes nothing; a second pod brings them back at once."""
    rule = RetryRule()
    assert [rule.decide(pods, now) for pods, now in [(2, 0), (1, 1), (1, 5.9), (2, 6), (1, 7), (1, 11.9), (1, 12)]] == [1, 1, 1, 1, 1, 1, 0]
    assert [rule.decide(pods, now) for pods, now in [(0, 13), (1, 14), (2, 15)]] == [0, 0, 1]
