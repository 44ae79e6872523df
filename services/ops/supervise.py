"""The supervisor process: supervisord, made quicker to heal, and keeping count of what it started again.

`python -m services.ops.supervise CONFIG` is started by `convoy up`; nobody types it.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from supervisor import events
from supervisor.datatypes import RestartWhenExitUnexpected
from supervisor.options import ServerOptions
from supervisor.supervisord import Supervisor, asyncore

from services.files import write_atomically
from services.ops.state import ROOT, History
from services.settings import secret_names

if TYPE_CHECKING:
    from supervisor.options import ProcessConfig

# supervisord looks for dead children between two polls of one second each; a dead Envoy should be back before anybody notices.
_TICK_SECONDS = 0.1

# What pods need is no other program's business.
_PODS_PARENT = "runner"

# Envoy and the pods hold a file per connection; many systems start a session with 1024.
_MAX_OPEN_FILES = 65_536


class Options(ServerOptions):  # type: ignore[misc] # supervisor has no annotations
    """supervisord's options and system calls, with the last end of each program remembered."""

    def __init__(self) -> None:
        """No program has ended yet."""
        super().__init__()
        self.ends: dict[str, str] = {}

    def realize(self, *args: Any, **kwargs: Any) -> None:
        """Reads the configuration, lets the programs run in the checkout, and shortens the poll."""
        super().realize(*args, **kwargs)
        for group in self.process_group_configs:
            for program in group.process_configs:
                program.directory = str(ROOT)  # here, where no character of the path can mean anything else
                if program.name != _PODS_PARENT:
                    program.environment = dict(program.environment or {}) | dict.fromkeys(secret_names(), "")
        poll = self.poller.poll
        self.poller.poll = lambda _seconds: poll(_TICK_SECONDS)

    def waitpid(self) -> tuple[int | None, int | None]:
        """Reaps one child, if one has ended."""
        pid, status = super().waitpid()
        process = self.pidhistory.get(pid) if pid else None
        if process is not None:
            self.ends[process.config.name] = _in_words(status)
        return pid, status


class Overseer(Supervisor):  # type: ignore[misc] # supervisor has no annotations
    """supervisord that writes `programs.json` beside its configuration: restarts of each program and why."""

    def __init__(self, options: Options, state_dir: Path) -> None:
        """Supervises what `options` hold; writes into `state_dir`."""
        super().__init__(options)
        self.state_dir = state_dir
        self.histories: dict[str, History] = {}
        self.stopped: set[str] = set()

    def runforever(self) -> None:
        """Runs until told to stop; subscribes here because `run` forgets all subscribers first."""
        events.subscribe(events.ProcessStateStartingEvent, self.on_start)
        events.subscribe(events.ProcessStateStoppedEvent, self.on_stop)
        events.subscribe(events.ProcessStateExitedEvent, self.on_end)
        events.subscribe(events.ProcessStateFatalEvent, self.on_end)
        super().runforever()

    def on_start(self, event: events.ProcessStateEvent) -> None:
        """Counts a start: the first is none, nor is one that somebody asked for, each later one is a restart with a reason."""
        name = event.process.config.name
        known = self.histories.get(name)
        if name in self.stopped:
            self.stopped.remove(name)
            return
        self._note(name, History(known.restarts + 1, self.options.ends.get(name, "")) if known else History())

    def on_stop(self, event: events.ProcessStateEvent) -> None:
        """Remembers that a program was told to stop: it did not die."""
        self.stopped.add(event.process.config.name)

    def on_end(self, event: events.ProcessStateEvent) -> None:
        """Notes an end that is final: given up, or an exit code that says so."""
        name = event.process.config.name
        if isinstance(event, events.ProcessStateExitedEvent) and not (event.expected and self._is_final(event.process.config)):
            return
        self._note(name, History(self.histories[name].restarts, self.options.ends.get(name, ""), is_over=True))

    @staticmethod
    def _is_final(config: ProcessConfig) -> bool:
        return config.autorestart is RestartWhenExitUnexpected

    def _note(self, name: str, history: History) -> None:
        self.histories[name] = history
        write_atomically(self.state_dir / "programs.json", msgspec.json.encode(self.histories))


def _in_words(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def main() -> None:
    """Reads the configuration named on the command line and runs."""
    config = Path(sys.argv[1])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    os.chdir(config.parent)
    options = Options()
    options.realize(["--configuration", str(config)])
    options.first, options.test = True, False
    try:
        Overseer(options, config.parent).main()
    except asyncore.ExitNow:
        options.close_httpservers()
        options.close_logger()


if __name__ == "__main__":
    main()
