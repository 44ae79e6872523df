"""`convoy reload`: what of the changes in files is in force, what is refused and why, and what waits for which command.

The edge takes files over by itself, within a second; this command waits until it has judged them as they lie, and tells.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from rich.table import Table
from rich.text import Text

from services.ops import begun, edge_told, start
from services.ops.begun import Begun, Value
from services.ops.plan import env_file_for, find_state, read_plan
from services.ops.state import ROOT
from services.ops.terminal import Terminal
from services.settings import SettingsError
from services.settings.common import LIVE, RESTART_ENVOY, SCALE, START
from services.settings.reader import line_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.ops.edge_told import EdgeTold
    from services.ops.state import StateDir

NOTHING_RUNS = 3
IN_FORCE, REFUSED, PENDING = "in force", "refused", "not taken over"
_TAKEN_OVER = {LIVE["applies"], RESTART_ENVOY["applies"]}
_WAIT_SECONDS = 5.0
_POLL_SECONDS = 0.05


class Setting(Struct, frozen=True):
    """A setting whose value is another one than at the start. `applies`: IN_FORCE, PENDING, or the commands that it waits for."""

    name: str
    running: Value
    wanted: Value
    applies: str


class File(Struct, frozen=True):
    """An input file and what became of its content as it lies: IN_FORCE, REFUSED, PENDING, or the command that it waits for."""

    path: str
    state: str
    reason: str = ""


class Report(Struct, frozen=True):
    """All that there is to tell."""

    settings: list[Setting]
    files: list[File]

    @property
    def is_well(self) -> bool:
        """Whether nothing is refused; what waits for a command is no mistake."""
        return not any(item in {REFUSED, PENDING} for item in self._states())

    @property
    def is_settled(self) -> bool:
        """Whether the edge has judged everything."""
        return PENDING not in self._states()

    def _states(self) -> list[str]:
        return [setting.applies for setting in self.settings] + [file.state for file in self.files]


def show(environ: Mapping[str, str]) -> int:
    """Waits, prints, and gives back the exit code: 1 if something is refused, 3 if nothing runs, else 0."""
    terminal, state, env_file = Terminal(), find_state(environ), env_file_for(environ)
    if start.running(state) is None:
        terminal.say("nothing runs; the files are read at `convoy up`")
        return NOTHING_RUNS
    wanted, error = Begun(), ""
    try:
        wanted = begun.of(read_plan(environ), begun.read(state).salt)
    except SettingsError as problem:
        line = line_of(str(problem), env_file)
        if not line:
            raise  # the shell's own mistake
        error = f"{env_file.name}:{line}: {problem}"
    report = wait(state, wanted, env_file, error)
    terminal.show(table(report))
    for text in verdict(report):
        terminal.say(text)
    return 0 if report.is_well else 1


def wait(state: StateDir, wanted: Begun, env_file: Path, env_error: str = "") -> Report:
    """The report as soon as the edge has judged what lies in the files, or after some seconds."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        report = look(state, wanted, env_file, env_error)
        if report.is_settled or time.monotonic() > deadline:
            return report
        time.sleep(_POLL_SECONDS)


def look(state: StateDir, wanted: Begun, env_file: Path, env_error: str = "") -> Report:
    """The report of now. `wanted`: what a start would begin with now; empty, with `env_error`, if `.env` cannot be used for one."""
    told, at_start = edge_told.read(state), begun.read(state)
    paths = dict.fromkeys([str(env_file), str(_clients_file(at_start)), *told.inputs])
    files = [file for path in paths if (file := _file(Path(path), told, state)) is not None]
    files = [File(file.path, REFUSED, file.reason or env_error) if env_error and file.path == str(env_file) else file for file in files]
    program = ROOT / "envoy" / "lua" / "request.lua"
    if _is_younger(program, state):
        files.append(File(str(program), RESTART_ENVOY["applies"]))
    return Report(_settings(wanted, at_start, told, state), files)


def table(report: Report) -> Table:
    """Settings first, then files: name, what runs, what is wanted, and when that applies."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("changed", "running", "wanted", "applies"):
        result.add_column(column, no_wrap=True)
    for setting in report.settings:
        result.add_row(setting.name, Text(_shown(setting.running)), Text(_shown(setting.wanted)), _state(setting.applies))
    for file in report.files:
        result.add_row(Text(_short(file.path)), "", "", _state(file.state, file.reason))
    return result


def verdict(report: Report) -> list[str]:
    """What to do next, in a line for each command that something waits for."""
    if not report.is_well:
        return ["not everything is in force; what is refused leaves in force what was before it"]
    waiting = {setting.applies for setting in report.settings} | {file.state for file in report.files}
    lines = [f"`{command}` puts in force what waits for it" for command in sorted(waiting - {IN_FORCE})]
    return lines or ["all is in force"]


def _settings(wanted: Begun, at_start: Begun, told: EdgeTold, state: StateDir) -> list[Setting]:
    applies = begun.applies()
    found = []
    for name, value in wanted.settings.items():
        before = at_start.settings.get(name, value)
        when = _applies(name, value, applies[name], at_start, wanted)
        taken = told.settings.get(name)
        if when in _TAKEN_OVER and taken != value:
            found.append(Setting(name, before if taken is None else taken, value, PENDING))
        elif value != before:
            is_live = (when == LIVE["applies"] and told.is_agreed) or (
                when == RESTART_ENVOY["applies"] and not _is_younger(state.path / "envoy.yaml", state)
            )
            found.append(Setting(name, before, value, IN_FORCE if is_live else PENDING if when == LIVE["applies"] else when))
    return found + _secrets(wanted, at_start)


def _secrets(wanted: Begun, at_start: Begun) -> list[Setting]:
    """Those that are another one than at the start."""
    changed = [name for name, digest in wanted.digests.items() if at_start.digests.get(name, digest) != digest]
    words = [(name, at_start.digests[name] and "(secret)", wanted.digests[name] and "(another)") for name in changed]
    return [Setting(name, before, after, begun.applies()[name]) for name, before, after in words]


def _applies(name: str, value: Value, when: str, at_start: Begun, wanted: Begun) -> str:
    """When a changed value is in force. What a shell gave at the start stays, unless a shell gives another value at a restart."""
    if name in at_start.of_the_shell and name not in wanted.of_the_shell:
        return START["applies"]
    if name in wanted.of_the_shell and when in _TAKEN_OVER:
        return START["applies"]  # the edge reads them in .env alone
    return f"{when} {value}" if when == SCALE["applies"] else when


def _file(path: Path, told: EdgeTold, state: StateDir) -> File | None:
    """What became of one file; None for one that is not there and need not be."""
    said = told.inputs.get(str(path), edge_told.Input())
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        digest = ""
    except OSError as error:
        return File(str(path), REFUSED, f"{path.name}: {error.strerror}")
    if not digest and str(path) not in told.inputs:
        return None
    if said.judged != digest:
        return File(str(path), PENDING, said.error or "see `convoy status` and `convoy logs edge`")
    if said.error:
        return File(str(path), REFUSED, said.error)
    if path == ROOT / "envoy" / "envoy.yaml" and _is_younger(path, state) and _is_younger(state.path / "envoy.yaml", state):
        return File(str(path), RESTART_ENVOY["applies"])
    return File(str(path), IN_FORCE if told.is_agreed else PENDING, "" if told.is_agreed else "Envoy does not run it yet")


def _clients_file(at_start: Begun) -> Path:
    return ROOT / Path(str(at_start.settings.get("CLIENTS_FILE", "clients.yaml"))).expanduser()


def _is_younger(path: Path, state: StateDir) -> bool:
    """Whether a file that Envoy reads at its start changed since."""
    return path.exists() and path.stat().st_mtime > state.envoy().started_at > 0


def _shown(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or "(empty)"


def _short(path: str) -> str:
    return path.removeprefix(f"{ROOT}/")


def _state(state: str, reason: str = "") -> Text:
    colour = {IN_FORCE: "green", REFUSED: "red"}.get(state, "yellow")
    shown = state if state in {IN_FORCE, REFUSED, PENDING} else f"after `{state}`"
    return Text.assemble((shown, colour), f": {reason}" if reason else "")
