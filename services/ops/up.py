"""The conversation with the user around a start and a stop."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from services.ops import start, status
from services.ops.stop import end_now, stop
from services.ops.terminal import Terminal
from services.ops.watch import watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.ops.plan import Plan
    from services.ops.state import Run, StateDir

_EXAMPLE = (
    "curl {url}/v1/chat/completions {key}-H 'content-type: application/json' "
    """-d '{{"messages": [{{"role": "user", "content": "Explain Docker in simple terms"}}], "max_tokens": 200}}'"""
)


def up(plan: Plan, *, is_detached: bool) -> None:
    """Starts the stack, or says that it runs; stays in the foreground unless detached. Raises `OpsError` with nothing left running."""
    state, terminal = plan.state, Terminal()
    state.create()
    with state.lock():
        already = start.running(state)
        if already is None:
            for name in start.clean_up(state):
                terminal.say(f"stopped a leftover of a run that was killed: {name}")
    if already is not None:
        terminal.say(f"Convoy runs already (since {status.duration(time.time() - already.started_at)}); `convoy down` stops it.")
        _show(state, terminal, already)
        return
    with _nothing_left(state, terminal):
        launched = _start(plan, terminal)
    if launched.hint:
        terminal.say(launched.hint)
    if is_detached:
        _show(state, terminal, launched.run)
    else:
        with _nothing_left(state, terminal), contextlib.suppress(KeyboardInterrupt):
            _show(state, terminal, launched.run)
            watch(state, launched.supervisor, terminal)
            terminal.settle()
            return  # `convoy down` stopped it
        _stop_in_foreground(state, terminal)


def down(state: StateDir) -> None:
    """Stops the stack and says what it did."""
    terminal = Terminal()
    if not state.path.is_dir():
        terminal.say("nothing runs")
        return
    with state.lock():
        began = time.monotonic()
        done = stop(state, terminal.progress)
    terminal.settle()
    for name in done.leftovers:
        terminal.say(f"stopped by force, or a leftover: {name}")
    if done.num_processes:
        terminal.say(f"stopped {done.num_processes} processes in {time.monotonic() - began:.1f} s; logs stay in {state.logs}")
    else:
        terminal.say("nothing runs")


@contextlib.contextmanager
def _nothing_left(state: StateDir, terminal: Terminal) -> Iterator[None]:
    """Whatever breaks inside, Ctrl-C during a start included, ends every process at once."""
    try:
        yield
    except BaseException:
        terminal.settle()
        end_now(state)
        raise


def _start(plan: Plan, terminal: Terminal) -> start.Launch:
    with plan.state.lock():
        launched = start.launch(plan)
    start.wait_ready(plan.state, launched, terminal.progress)
    terminal.settle()
    return launched


def _show(state: StateDir, terminal: Terminal, run: Run) -> None:
    found = status.gather(state)
    if found is not None:
        terminal.show(status.table(found))
    if run.engine == "fake":
        terminal.say("ENGINE=fake: the answers are made up, for tests and load only.")
    # The clients file, not its path's default, decides: an edge that runs tells how many clients it knows.
    key = '-H "Authorization: Bearer $KEY" ' if state.num_clients() is not None else ""
    terminal.say(f"\nAPI {run.url}/v1, its pages {run.url}/docs. Try:\n{_EXAMPLE.format(url=run.url, key=key)}\n")


def _stop_in_foreground(state: StateDir, terminal: Terminal) -> None:
    """Stops in good order; a second Ctrl-C ends everything at once."""
    terminal.settle()
    try:
        with state.lock():
            stop(state, lambda text: terminal.progress(f"{text}; Ctrl-C again ends at once"))
    except KeyboardInterrupt:
        end_now(state)
    terminal.settle()
    terminal.say("stopped")
