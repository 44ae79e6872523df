"""The live view of `convoy up`: one line of figures, and what happens printed above it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.ops import probe
from services.ops.state import PROGRAMS, History, OpsError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from services.ops.state import StateDir
    from services.ops.terminal import Terminal
    from services.pods_file import PodEntry

_PERIOD_SECONDS = 1.0


@dataclass
class Totals:
    """Counts over all pods that ever ran: a pod that is started again begins at zero, what its process before did still counts."""

    by_process: dict[int, probe.Work] = field(default_factory=dict)

    def add(self, pods: tuple[PodEntry, ...], work: list[probe.Work | None]) -> None:
        """Takes in what each pod's process says now; one that does not answer keeps its last word."""
        self.by_process.update({pod.pid: done for pod, done in zip(pods, work, strict=True) if done})

    @property
    def requests(self) -> float:
        """Requests answered since the view began to look."""
        return sum(done.requests for done in self.by_process.values())

    @property
    def tokens(self) -> float:
        """Tokens generated."""
        return sum(done.tokens for done in self.by_process.values())


@dataclass
class Seen:
    """What was known at the last look, to tell what is new."""

    restarts: dict[str, int] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)


def events(seen: Seen, pods: tuple[PodEntry, ...], said: list[probe.Readiness], histories: dict[str, History]) -> Iterator[str]:
    """What happened since the last look, in words; `seen` is brought up to date."""
    ends = {name: (history.restarts, history.last_exit) for name, history in histories.items()}
    ends |= {pod.name: (pod.restarts, pod.last_exit) for pod in pods}
    for name, (restarts, last_exit) in ends.items():
        if restarts > seen.restarts.get(name, 0):
            yield f"{name} died ({last_exit or 'reason unknown'}), started again"
        seen.restarts[name] = restarts
    for pod, readiness in zip(pods, said, strict=True):
        before = seen.states.get(pod.name)
        if before is not None and before != readiness.state:
            yield f"{pod.name} is {readiness.state}"
        seen.states[pod.name] = readiness.state
    for name in seen.states.keys() - {pod.name for pod in pods}:
        del seen.states[name]
        yield f"{name} is gone"


def line(totals: Totals, tokens_per_second: float, work: list[probe.Work | None], said: list[probe.Readiness]) -> str:
    """`12 requests · 3 in flight · 187 tokens/s · 2 of 2 pods ready`."""
    in_flight = sum(done.in_progress for done in work if done)
    ready = sum(readiness.state == "ready" for readiness in said)
    return (
        f"{totals.requests:.0f} requests · {in_flight:.0f} in flight · {tokens_per_second:.0f} tokens/s · {ready} of {len(said)} pods ready"
    )


def watch(state: StateDir, supervisor: subprocess.Popen[bytes], terminal: Terminal) -> None:
    """Looks once a second until the supervisor ends. Returns if `convoy down` stopped the stack; raises `OpsError` if it broke."""
    totals, seen = Totals(), Seen()
    tokens_before, looked_at = None, time.monotonic()
    while supervisor.poll() is None:
        pods = state.pods().pods
        said, work = probe.readiness(pods), probe.work(pods)
        totals.add(pods, work)
        for event in events(seen, pods, said, state.histories()):
            terminal.event(event)
        now = time.monotonic()
        speed = 0.0 if tokens_before is None else (totals.tokens - tokens_before) / (now - looked_at)
        tokens_before, looked_at = totals.tokens, now
        terminal.live(line(totals, speed, work, said))
        _raise_if_given_up(state)
        time.sleep(_PERIOD_SECONDS)
    if supervisor.returncode:
        raise OpsError(f"the supervisor died; everything was stopped. Its log: {state.logs / 'supervisor.log'}")


def _raise_if_given_up(state: StateDir) -> None:
    histories = state.histories()
    for name in PROGRAMS:
        history = histories.get(name, History())
        if history.is_over:
            raise OpsError(
                f"{name} ended ({history.last_exit}) and was not started again; everything was stopped. Its log: {state.logs / name}.log"
            )
