"""What the running stack began with: `STATE_DIR/begun.json`, so that a change made since can be told from what runs."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct, structs

from services.files import write_atomically
from services.ops import edge_told
from services.settings import secret_names, withheld_names
from services.settings.common import RESTART_ENVOY
from services.settings.declared import ALL
from services.settings.reader import applies_of, names_of_the_shell

if TYPE_CHECKING:
    from services.ops.plan import Plan
    from services.ops.state import StateDir

NAME = "begun.json"

Value = str | int | float | bool


class Begun(Struct, frozen=True):
    """The values of a start by their names, without the secret ones, and the names that the shell gave: `.env` does not change those.

    Of secrets that processes were given there are `digests`, salted, empty for an empty one: enough to see that one has changed.
    """

    settings: dict[str, Value] = {}
    of_the_shell: tuple[str, ...] = ()
    salt: str = ""
    digests: dict[str, str] = {}


def of(plan: Plan, salt: str = "") -> Begun:
    """A plan as people gave it: before free ports and addresses of tools were filled in. `salt`: that of the start to compare with."""
    salt = salt or secrets.token_hex(16)
    kept = secret_names() - withheld_names()
    digests = {name: _digest(str(value), salt) for name, value in _all(plan).items() if name in kept}
    return Begun(values(plan), tuple(sorted(names_of_the_shell(plan.env))), salt, digests)


def values(plan: Plan) -> dict[str, Value]:
    """Every setting that may be shown."""
    return {name: value for name, value in _all(plan).items() if name not in secret_names()}


def _all(plan: Plan) -> dict[str, Value]:
    given = [msgspec.structs.asdict(settings) for settings in (plan.runner, plan.edge, plan.ops)]
    return {name.upper(): value for settings in given for name, value in settings.items()}


def _digest(secret: str, salt: str) -> str:
    return hashlib.blake2b(secret.encode(), key=salt.encode(), digest_size=16).hexdigest() if secret else ""


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


def shell_of(state: StateDir) -> dict[str, str]:
    """What the shell of `convoy up` gave, and those of later restarts: it goes before `.env` for as long as the stack runs."""
    begun = read(state)
    return {name: str(begun.settings[name]) for name in begun.of_the_shell if name in begun.settings}


def note(state: StateDir, plan: Plan, kinds: set[str]) -> None:
    """New processes began with what the plan says, in the settings of these kinds."""
    begun, when = read(state), applies()
    fresh = {name: value for name, value in values(plan).items() if when[name] in kinds}
    of_the_shell = {*begun.of_the_shell, *(name for name in names_of_the_shell(plan.env) if name in fresh)}
    write(state, structs.replace(begun, settings=begun.settings | fresh, of_the_shell=tuple(sorted(of_the_shell))))


def note_number(state: StateDir, number: int) -> None:
    """So many pods are there, or come."""
    begun = read(state)
    write(state, structs.replace(begun, settings=begun.settings | {"PODS": number}))


def note_restart(state: StateDir) -> None:
    """A new Envoy began with what the edge had taken over by then."""
    begun, taken = read(state), edge_told.read(state).settings
    fresh = {name: taken[name] for name, when in applies().items() if when == RESTART_ENVOY["applies"] and name in taken}
    write(state, structs.replace(begun, settings=begun.settings | fresh))
