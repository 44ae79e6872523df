"""Reads a settings class from the environment and a `.env` file; every mistake becomes one readable line."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import msgspec

from services.settings import common, declared
from services.settings.common import LIVE, RESTART_ENVOY, RESTART_PODS, START

if TYPE_CHECKING:
    from collections.abc import Mapping

S = TypeVar("S", bound=common.CommonSettings)

# A foreign variable of the environment is a misspelt setting only if it is this near to one; `.env` is Convoy's own and must be exact.
_NEAR = 0.88
_MAKE_ONLY = {"DETACH", "UI", "SHAPE", "ARGS"}
# OpenTelemetry's own variables, many and alike, which its SDK reads beside ours.
_NOT_OURS = "OTEL_"


# How `convoy up` tells a process which settings may change below it: those of this file, except the ones that the shell gave.
_ENV_FILE, _FROM_SHELL = "CONVOY_ENV_FILE", "CONVOY_SETTINGS_OF_THE_SHELL"


class SettingsError(ValueError):
    """A setting is unknown, malformed, out of range, or does not fit the others; the message names it and what is allowed."""


def load(cls: type[S], env: Mapping[str, str] | None = None) -> S:
    """Reads `cls` from `env` (default: the process environment); raises `SettingsError`."""
    env = os.environ if env is None else env
    _refuse_misspelt(env)
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(cls):
        name = field.name.upper()
        raw = env.get(name, "")
        if raw.strip():
            values[field.name] = _convert(name, raw.strip(), field)
    settings = cls(**values)
    problem = settings.problem() if isinstance(settings, common.CapacitySettings) else None
    if problem:
        raise SettingsError(problem)
    return settings


def read_env_file(path: Path, *, is_strict: bool = True) -> dict[str, str]:
    """The variables of a `.env` file, empty if there is none; if `is_strict` raises `SettingsError` for a name that is no setting."""
    if not path.is_file():
        return {}
    from dotenv import dotenv_values  # noqa: PLC0415 - only the commands that people type read the file; a pod never does

    values = {name: value or "" for name, value in dotenv_values(path).items()}
    for name in values:
        if is_strict and name not in known_names():
            raise SettingsError(f"{path.name}: {name} is not a setting of Convoy{_nearest(name)}; see .env.example")
    return values


def told_about(env_file: Path, shell: Mapping[str, str]) -> dict[str, str]:
    """The variables with which a child process can follow changes of `env_file`; `shell` is what goes before it."""
    return {_ENV_FILE: str(env_file), _FROM_SHELL: ",".join(sorted(name for name in known_names() if shell.get(name, "").strip()))}


def given_path(state_dir: Path, program: str) -> Path:
    """Where the variables lie that a restart gave to `program` (runner, edge), beside those that it was started with first."""
    return state_dir / f"settings-{program}.json"


def given(state_dir: Path, program: str) -> dict[str, str]:
    """Those variables; none where nothing was restarted."""
    path = given_path(state_dir, program)
    return msgspec.json.decode(path.read_bytes(), type=dict[str, str]) if path.exists() else {}


def environment_of(program: str) -> dict[str, str]:
    """This process's environment, with what a restart gave `program`: who supervises it starts it with what it had at first."""
    state_dir = load(common.CommonSettings, {"STATE_DIR": os.environ.get("STATE_DIR", "")}).state_dir
    return {**os.environ, **given(Path(state_dir), program)}


def env_file_of(env: Mapping[str, str] | None = None) -> Path | None:
    """The `.env` whose changes this process shall follow, if it was told of one."""
    path = (os.environ if env is None else env).get(_ENV_FILE)
    return Path(path) if path else None


def names_of_the_shell(env: Mapping[str, str]) -> frozenset[str]:
    """The settings that `told_about` keeps as the shell gave them, whatever `.env` says later."""
    return frozenset(env.get(_FROM_SHELL, "").split(",")) - {""}


def changeable(settings: common.CommonSettings) -> dict[str, Any]:
    """Those values, by name, that the edge takes over while it runs."""
    fields, kinds = msgspec.structs.fields(type(settings)), {LIVE["applies"], RESTART_ENVOY["applies"]}
    return {field.name.upper(): getattr(settings, field.name) for field in fields if applies_of(field) in kinds}


def load_again(cls: type[S], env_file: Path, env: Mapping[str, str] | None = None) -> S:
    """The settings as `env_file` has them now: what can change while the process runs from there, all else as at its start.

    Raises `SettingsError` that names file and line.
    """
    env = os.environ if env is None else env
    names = changeable(cls()).keys() - names_of_the_shell(env)
    try:
        values = read_env_file(env_file)
        kept = {name: value for name, value in env.items() if name not in names}
        return load(cls, kept | {name: value for name, value in values.items() if name in names})
    except SettingsError as error:
        raise SettingsError(f"{env_file.name}:{line_of(str(error), env_file) or 1}: {error}") from error


def line_of(message: str, env_file: Path) -> int:
    """The line of the setting that a message names; 0 if it is not there."""
    lines = env_file.read_text(encoding="utf-8", errors="replace").splitlines() if env_file.is_file() else []
    named = set(re.findall(r"[A-Z][A-Z0-9_]+", message))
    return next((n for n, line in enumerate(lines, 1) if line.removeprefix("export ").partition("=")[0].strip() in named), 0)


def secret_names() -> frozenset[str]:
    """Those whose values are not printed, nor written into files."""
    return _marked("secret")


def withheld_names() -> frozenset[str]:
    """Those of them that no process of Convoy's is given."""
    return _marked("secret") - _marked("passed")


def _marked(mark: str) -> frozenset[str]:
    return frozenset(
        field.name.upper()
        for cls in declared.ALL
        for field in msgspec.structs.fields(cls)
        if any((meta.extra or {}).get(mark) for meta in _metas(field.type))
    )


def known_names() -> frozenset[str]:
    """The environment variables that are settings."""
    return frozenset(field.name.upper() for cls in declared.ALL for field in msgspec.structs.fields(cls))


def help_of(field: msgspec.structs.FieldInfo) -> str:
    """The description in a field's innermost-first `Meta`s."""
    return next((m.description for m in _metas(field.type) if m.description), "")


def applies_of(field: msgspec.structs.FieldInfo) -> str:
    """When a change of a field is in force: `live`, or the commands that it waits for."""
    told = next((m.extra["applies"] for m in _metas(field.type) if m.extra), "")
    return told or (RESTART_PODS if field.name in declared.RunnerSettings.__struct_fields__ else START)["applies"]


def as_environment(settings: common.CommonSettings) -> dict[str, str]:
    """The variables from which `load` makes these settings again."""
    return {name.upper(): str(value) for name, value in msgspec.structs.asdict(settings).items()}


def allowed_of(field: msgspec.structs.FieldInfo) -> str:
    """What a field accepts, in words: `one of …`, `a whole number from … to …`, `true or false`."""
    base = _strip(field.type)
    if get_origin(base) is not None:
        return "one of " + ", ".join(str(arg) for arg in get_args(base))
    if base is bool:
        return "true or false"
    if base is str:
        return "a text" if not any(m.pattern for m in _metas(field.type)) else help_of(field).rstrip(".")
    kind = "a whole number" if base is int else "a number"
    lower = next(
        (f"from {m.ge:,}" if m.ge is not None else f"above {m.gt:,}" for m in _metas(field.type) if (m.ge, m.gt) != (None, None)), ""
    )
    upper = next((f"to {m.le:,}" for m in _metas(field.type) if m.le is not None), "")
    return " ".join(part for part in (kind, lower, upper) if part).replace(",", "")


def _convert(name: str, raw: str, field: msgspec.structs.FieldInfo) -> object:
    if _strip(field.type) is bool:
        raw = {"1": "true", "0": "false", "yes": "true", "no": "false", "on": "true", "off": "false"}.get(raw.lower(), raw.lower())
    try:
        return msgspec.convert(raw, field.type, strict=False)
    except msgspec.ValidationError as error:
        shown = "" if name in secret_names() else f"={raw}"
        raise SettingsError(f"{name}{shown}: must be {allowed_of(field)}") from error


def _refuse_misspelt(env: Mapping[str, str]) -> None:
    known = known_names()
    for name in env:
        if (
            name not in known
            and name.isupper()
            and not name.startswith(_NOT_OURS)
            and difflib.get_close_matches(name, known, n=1, cutoff=_NEAR)
        ):
            raise SettingsError(f"{name} is not a setting of Convoy{_nearest(name)}; see .env.example")

    for name in re.findall(r"(?<!\S)([A-Z][A-Z0-9_]*)=", env.get("MAKEFLAGS", "").partition("-- ")[2]):
        # What stands on make's command line is meant for us, so it must be exact.
        if name not in known and name not in _MAKE_ONLY:
            raise SettingsError(f"{name} is not a setting of Convoy{_nearest(name)}; see .env.example")


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, known_names(), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def _metas(kind: Any) -> list[msgspec.Meta]:
    return [m for m in getattr(kind, "__metadata__", ()) if isinstance(m, msgspec.Meta)][::-1]


def _strip(kind: Any) -> Any:
    return _strip(kind.__origin__) if hasattr(kind, "__metadata__") else kind


__all__ = [
    "SettingsError",
    "allowed_of",
    "applies_of",
    "as_environment",
    "changeable",
    "env_file_of",
    "environment_of",
    "given",
    "given_path",
    "help_of",
    "known_names",
    "line_of",
    "load",
    "load_again",
    "names_of_the_shell",
    "read_env_file",
    "secret_names",
    "told_about",
    "withheld_names",
]
