"""The live view of `convoy up`: one line of figures, and what happens printed above it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.ops import probe
from services.ops.state import PROGRAMS, History, OpsError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence

    from services.ops.state import StateDir
    from services.ops.terminal import Terminal
    from services.pods_file import CrashLoop, PodEntry, Roll

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
    roll: Roll | None = None


def events(
    seen: Seen, pods: tuple[PodEntry, ...], said: list[probe.Readiness], histories: dict[str, History], loops: Sequence[CrashLoop] = ()
) -> Iterator[str]:
    """What happened since the last look, in words; `seen` is brought up to date. Of a pod that is being replaced, what serves counts."""
    ends = {name: (history.restarts, history.last_exit) for name, history in histories.items()}
    ends |= {loop.name: (loop.restarts, loop.last_exit) for loop in loops}
    ends |= {pod.name: (pod.restarts, pod.last_exit) for pod in pods if not pod.is_leaving}
    for name, (restarts, last_exit) in ends.items():
        if restarts > seen.restarts.get(name, 0):
            yield f"{name} died ({last_exit or 'reason unknown'}), started again"
        seen.restarts[name] = restarts
    states: dict[str, str] = {}
    for pod, readiness in zip(pods, said, strict=True):
        if states.get(pod.name) != "ready":
            states[pod.name] = readiness.state
    states |= {loop.name: "in a crash loop" for loop in loops if states.get(loop.name) != "ready"}
    for name, state in states.items():
        before = seen.states.get(name)
        if before is not None and before != state:
            yield f"{name} is {state}"
        seen.states[name] = state
    for name in seen.states.keys() - states.keys():
        del seen.states[name]
        yield f"{name} is gone"


def roll_events(seen: Seen, roll: Roll | None) -> Iterator[str]:
    """Likewise of a restart of all pods."""
    if roll is not None and (seen.roll is None or (seen.roll.id, seen.roll.state) != (roll.id, roll.state)):
        words = {"rolling": "pods are being replaced, one after the other", "done": "all pods were replaced"}
        words |= {"taking back": f"{roll.reason}; taking back what was replaced", "failed": f"the pods were not replaced: {roll.reason}"}
        if roll.state in words:
            yield words[roll.state]
    seen.roll = roll


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
        known = state.pods()
        pods = known.pods
        said, work = probe.readiness(pods), probe.work(pods)
        totals.add(pods, work)
        for event in (*events(seen, pods, said, state.histories(), known.loops), *roll_events(seen, known.roll)):
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
