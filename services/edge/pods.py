"""Which pods there are, what they said of themselves, and what Envoy shall therefore know. Decides only: no files, no network, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.edge.files import Json
    from services.pods_file import PodEntry

Answer = Literal["ready", "draining", "loading", "stalled", "foreign", "refused", "silent"]
"""What asking `/readyz` brought. foreign: another pod's name; refused: nobody listens; silent: too late, or broken off."""

State = Literal["unknown", "ready", "draining", "loading", "stalled", "foreign", "gone"]

REFUSALS_UNTIL_GONE = 3
"""Refused connections in a row after which a pod is taken out. A pod that is merely silent stays: Envoy's own checks judge that."""


class Endpoint(msgspec.Struct, frozen=True):
    """One pod as Envoy shall know it."""

    name: str
    host: str
    port: int
    health: Literal["HEALTHY", "DRAINING"]
    hash_key: str


class Pod:
    """A pod and what it last said."""

    def __init__(self, entry: PodEntry, state: State = "unknown") -> None:
        """`state`: what an earlier edge knew of it."""
        self.entry = entry
        self.state: State = state
        self._refusals = 0

    def hear(self, answer: Answer) -> bool:
        """Takes an answer in; whether the state changed."""
        before = self.state
        self._refusals = self._refusals + 1 if answer == "refused" else 0
        if answer == "refused":
            self.state = "gone" if self._refusals >= REFUSALS_UNTIL_GONE else before
        elif answer != "silent":
            self.state = answer
        return self.state != before


def endpoints_of(pods: Iterable[Pod]) -> list[Endpoint]:
    """What Envoy shall know: pods that are ready or draining, in the order of their names.

    Each has its name as hash key, so that a restart on another port keeps its share of a hash ring. While an old and a new process of one
    pod are both there, the new one has the name and the other one a key of its own.
    """
    shown = [pod for pod in pods if pod.state in {"ready", "draining"}]
    shown.sort(key=lambda pod: (_natural(pod.entry.name), pod.state != "ready", -pod.entry.started_at, pod.entry.port))
    named: set[str] = set()
    found = []
    for pod in shown:
        entry = pod.entry
        key = f"{entry.name}@{entry.host}:{entry.port}" if entry.name in named else entry.name
        named.add(entry.name)
        found.append(Endpoint(entry.name, entry.host, entry.port, "HEALTHY" if pod.state == "ready" else "DRAINING", key))
    return found


def endpoints_in(response: Json | None) -> list[Endpoint]:
    """The endpoints of a rendered file: how a new edge learns what the one before it knew."""
    found = []
    for locality in ((response or {}).get("resources") or [{}])[0].get("endpoints", []):
        for item in locality["lb_endpoints"]:
            address = item["endpoint"]["address"]["socket_address"]
            key = item["metadata"]["filter_metadata"]["envoy.lb"]["hash_key"]
            found.append(Endpoint(item["endpoint"]["hostname"], address["address"], address["port_value"], item["health_status"], key))
    return found


def known_state(entry: PodEntry, endpoints: Iterable[Endpoint]) -> State:
    """What `endpoints` tell about a pod of the pods file."""
    for endpoint in endpoints:
        if (endpoint.name, endpoint.host, endpoint.port) == (entry.name, entry.host, entry.port):
            return "ready" if endpoint.health == "HEALTHY" else "draining"
    return "unknown"


class RetryRule:
    """How often Envoy may retry: once on another pod; never where there is one pod, which would only be asked twice.

    A pod that is alone for a moment (the other one restarts) changes nothing: fewer retries only after `ALONE_SECONDS`, more at once.
    """

    ALONE_SECONDS = 5.0

    def __init__(self, num_retries: int = 1) -> None:
        """`num_retries`: what Envoy has now."""
        self.num_retries = num_retries
        self._alone_since: float | None = None

    def decide(self, num_pods: int, now: float) -> int:
        """The retries for `num_pods` endpoints, draining ones included; `now` in seconds of a clock that never goes back."""
        if num_pods != 1:
            self._alone_since = None
            self.num_retries = 1 if num_pods > 1 else self.num_retries
        elif self._alone_since is None:
            self._alone_since = now
        elif now - self._alone_since >= self.ALONE_SECONDS:
            self.num_retries = 0
        return self.num_retries


def _natural(name: str) -> tuple[str, int]:
    """`engine-10` after `engine-9`."""
    stem, _, number = name.rpartition("-")
    return (stem, int(number)) if number.isdigit() else (name, 0)
