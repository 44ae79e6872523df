"""What the running stack began with: `STATE_DIR/begun.json`, so that a change made since can be told from what runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from services.files import write_atomically
from services.ops import edge_told
from services.settings import secret_names
from services.settings.common import RESTART_ENVOY
from services.settings.declared import ALL
from services.settings.reader import applies_of, names_of_the_shell

if TYPE_CHECKING:
    from services.ops.plan import Plan
    from services.ops.state import StateDir

NAME = "begun.json"

Value = str | int | float | bool


class Begun(Struct, frozen=True):
    """The values of a start by their names, without the secret ones, and the names that the shell gave: `.env` does not change those."""

    settings: dict[str, Value] = {}
    of_the_shell: tuple[str, ...] = ()


def of(plan: Plan) -> Begun:
    """A plan as people gave it: before free ports and addresses of tools were filled in."""
    return Begun(values(plan), tuple(sorted(names_of_the_shell(plan.env))))


def values(plan: Plan) -> dict[str, Value]:
    """Every setting that may be shown."""
    found: dict[str, Value] = {}
    for settings in (plan.runner, plan.edge, plan.ops):
        found |= {name.upper(): value for name, value in msgspec.structs.asdict(settings).items()}
    return {name: value for name, value in found.items() if name not in secret_names()}


def applies() -> dict[str, str]:
    """When a change of each setting is in force."""
    return {field.name.upper(): applies_of(field) for cls in ALL for field in msgspec.structs.fields(cls)}


def write(state: StateDir, begun: Begun) -> None:
    """For nobody else to read: settings may tell of the machine."""
    write_atomically(state.path / NAME, msgspec.json.encode(begun), mode=0o600)


def read(state: StateDir) -> Begun:
    """Empty for a stack that an older version started."""
    try:
        return msgspec.json.decode((state.path / NAME).read_bytes(), type=Begun)
    except (FileNotFoundError, msgspec.DecodeError):
        return Begun()


def note_restart(state: StateDir) -> None:
    """A new Envoy began with what the edge had taken over by then."""
    begun, taken = read(state), edge_told.read(state).settings
    fresh = {name: taken[name] for name, when in applies().items() if when == RESTART_ENVOY["applies"] and name in taken}
    write(state, Begun(begun.settings | fresh, begun.of_the_shell))
