"""`convoy restart pods`: asks the runner to replace its pods one after the other, shows how far it is, tells what came of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec import structs

from services import pods_wanted
from services.ops import begun, supervisor_client
from services.ops.plan import check_model
from services.ops.state import OpsError
from services.pods_wanted import Restart
from services.settings.common import LIVE, RESTART_ENVOY
from services.settings.reader import as_environment

if TYPE_CHECKING:
    from services.ops.plan import Plan
    from services.ops.state import Run, StateDir
    from services.ops.terminal import Terminal
    from services.pods_file import Roll

_POLL_SECONDS = 0.1
# The runner hears a signal at once; while it becomes its successor it is deaf for as long as its imports take.
_MAX_SILENCE_SECONDS = 120.0

_CANCELLED = "it was cancelled"


def restart_pods(plan: Plan, run: Run, kinds: set[str], limit_seconds: float, terminal: Terminal) -> str:
    """Replaces all pods; what came of it, in words. `kinds`: which changed settings the new ones shall have.

    Raises `OpsError` with the reason if pods from before serve on.
    """
    state, began = plan.state, time.monotonic()
    check_model(plan.runner)
    # Those that the edge took over while it ran count for new pods, too.
    kinds_given = kinds | {LIVE["applies"], RESTART_ENVOY["applies"]}
    given = {name: value for name, value in as_environment(plan.runner).items() if begun.applies()[name] in kinds_given}
    asked = Restart(id=str(time.time_ns()), settings=given, limit_seconds=limit_seconds)
    roll = _Watch(state, asked, run, terminal).wait()
    terminal.settle()
    if roll.state == "failed":
        raise OpsError(_failure(roll, state))
    state.write_run(structs.replace(run, engine=plan.runner.engine, model_name=plan.runner.model_name))
    begun.note(state, plan, kinds)
    what = "1 pod was" if roll.total == 1 else f"{roll.total} pods, one after the other, were"
    return f"{what} replaced in {time.monotonic() - began:.1f} s; model {plan.runner.model_name}"


def ask(state: StateDir) -> int:
    """Has the runner read what is asked of it; its process id. Raises `OpsError`."""
    try:
        pid = supervisor_client.programs(state.socket)["runner"].pid
        supervisor_client.send_signal(state.socket, "runner", "USR1")
    except supervisor_client.SupervisorUnreachableError as error:
        raise OpsError(f"the runner does not run ({error}); see `convoy status`") from error
    return pid


class _Watch:
    """One restart from the command's side. A first Ctrl-C has it taken back, a second one leaves that to the runner."""

    def __init__(self, state: StateDir, asked: Restart, run: Run, terminal: Terminal) -> None:
        self._state, self._asked, self._terminal = state, asked, terminal
        self._max_silence_seconds = asked.limit_seconds + run.drain_timeout_seconds + _MAX_SILENCE_SECONDS
        self._is_cancelled = False
        self._pid = 0

    def wait(self) -> Roll:
        """Asks, and waits for the end."""
        try:
            self._tell_runner()
            return self._look()
        except KeyboardInterrupt:
            self._cancel()
        try:
            return self._look()
        except KeyboardInterrupt:
            raise OpsError("left at once; the runner takes back what it did, see `convoy status`") from None

    def _look(self) -> Roll:
        seen, heard_at = None, time.monotonic()
        while True:
            roll = self._state.pods().roll
            roll = roll if roll and roll.id == self._asked.id else None
            if roll and roll.is_over:
                return roll
            if roll != seen:
                seen, heard_at = roll, time.monotonic()
            if roll:
                back = "; Ctrl-C again leaves at once" if self._is_cancelled else ""
                self._terminal.progress(f"{roll.replaced} of {roll.total} pods replaced; {roll.progress or roll.state}{back}")
            if time.monotonic() - heard_at > self._max_silence_seconds:
                self._cancel()
                raise OpsError(
                    f"the runner has said nothing for {self._max_silence_seconds:g} s (pid {self._pid}); see `convoy logs runner`"
                )
            time.sleep(_POLL_SECONDS)

    def _tell_runner(self) -> None:
        pods_wanted.write_restart(self._state.path, structs.replace(self._asked, is_cancelled=self._is_cancelled))
        self._pid = ask(self._state)

    def _cancel(self) -> None:
        self._is_cancelled = True
        self._tell_runner()


def _failure(roll: Roll, state: StateDir) -> str:
    what = "the restart was stopped" if roll.reason == _CANCELLED else f"the pods were not replaced: {roll.reason}"
    if roll.is_mixed:
        return f"{what}; some run what is new and some what was before, see `convoy status`; mend it, then `convoy restart pods` again"
    return f"{what}; all pods run what they ran before (logs: {state.logs})"
