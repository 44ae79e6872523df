"""Why a body does not fit its type, in words: the slow path of decoding, taken only for bodies that were refused.

msgspec says where the first bad value is, but not in words for people. This walks to that place in the plain JSON value, beside msgspec's
description of the type, so types and messages cannot disagree; nothing else is looked at, so a large body costs no more than a small one.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import inspect

from services.openai import describe
from services.openai.errors import BadRequest, InvalidValue, MissingParameter, UnknownParameter, UnsupportedParameter

_MAX_NAME = 64


Place = Sequence[str]
"""Names and indices on the way to a value; `...` is some value or key of a dictionary."""


def problem_of(value: object, kind: Any, error: msgspec.ValidationError) -> BadRequest | None:
    """The reason for `error`, raised when `value` was decoded as `kind`; None if nothing is wrong at its place."""
    info = _type_info(kind)
    # The name of an unknown field stands in msgspec's text and may look like a place; then nothing is wrong there, but with the body.
    return _check(value, info, "", place_of(error)) or _check(value, info, "", ())


def place_of(error: msgspec.ValidationError) -> Place:
    """Where in a body the bad value is, for msgspec's "… - at `$.messages[0].role`"; empty is the body itself."""
    match = _PLACE.search(str(error))
    return re.findall(r"\w+|\.\.\.", match[1]) if match else ()


_PLACE = re.compile(r" - at (?:`key` in )?`\$((?:\.[a-z_]+|\[(?:[0-9]{1,9}|\.\.\.)\])*)`$")
# Building the description costs more than all checks; there are as many as there are bodies.
_type_info = functools.cache(inspect.type_info)


def true_is_unsupported(path: str) -> UnsupportedParameter:
    """The refusal of `true` where only false is carried out."""
    return UnsupportedParameter(f"{path}: true is not supported by this server; leave it out or send false.", param=path)


def _check(value: object, info: inspect.Type, path: str, place: Place) -> BadRequest | None:
    if isinstance(info, inspect.Metadata):
        return _check_marked(value, info, path, place)
    options = info.types if isinstance(info, inspect.UnionType) else (info,)
    fitting = [option for option in options if describe.is_kind(value, option)]
    if not fitting:
        return _wrong(value, info, path)
    if isinstance(value, dict):
        return _check_object(value, fitting, path, place)
    if isinstance(value, list):
        return _check_list(value, fitting[0], path, place)
    return None if describe.is_allowed(value, fitting[0]) else _wrong(value, fitting[0], path)


def _check_marked(value: object, info: inspect.Metadata, path: str, place: Place) -> BadRequest | None:
    """Checks a field with marks: what OpenAI's own type takes and ours does not is unsupported, not invalid."""
    marks = info.extra or {}
    problem = _check(value, info.type, path, place)
    if marks.get("false_only"):
        return true_is_unsupported(path) if value is True else problem and _wrong(value, inspect.LiteralType((False,)), path)
    if problem and "openai" in marks and _fits(value, marks["openai"]):
        neutral = describe.allowed(info.type)
        cure = "leave it out" if neutral == "null" else f"only {neutral} is"
        return UnsupportedParameter(f"{path}: {describe.shown(value)} is not supported by this server; {cure}.", param=path)
    return problem


def _check_list(value: list[Any], info: inspect.Type, path: str, place: Place) -> BadRequest | None:
    if not isinstance(info, inspect.ListType):
        return None
    if not place:
        return None if describe.has_length(len(value), info) else _wrong(value, info, path)
    index = int(place[0]) if place[0].isdecimal() else len(value)
    return _check(value[index], info.item_type, f"{path}[{index}]", place[1:]) if index < len(value) else None


def _check_object(value: dict[str, Any], options: Sequence[inspect.Type], path: str, place: Place) -> BadRequest | None:
    structs = [option for option in options if isinstance(option, inspect.StructType)]
    if structs:
        struct = _by_tag(value, structs, path)
        return struct if isinstance(struct, BadRequest) else _check_struct(value, struct, path, place)
    return _check_dict(value, options[0], path) if isinstance(options[0], inspect.DictType) else None


def _check_dict(value: dict[str, Any], info: inspect.DictType, path: str) -> BadRequest | None:
    if not describe.has_length(len(value), info):
        return _wrong(value, info, path)
    for name, item in value.items():
        if not describe.is_allowed(name, info.key_type):
            return InvalidValue(f"{path}: each key must be {describe.allowed(info.key_type)}, got {describe.shown(name)}.", param=path)
        problem = _check(item, info.value_type, _join(path, name), ())
        if problem:
            return problem
    return None


def _by_tag(value: dict[str, Any], structs: list[inspect.StructType], path: str) -> inspect.StructType | BadRequest:
    """The struct of a tagged union that `value` says it is."""
    field = structs[0].tag_field
    if field is None:
        return structs[0]
    tags = {str(struct.tag): struct for struct in structs}
    where, allowed = _join(path, field), describe.one_of(list(tags))
    if field not in value:
        return MissingParameter(f"{where} is required: {allowed}.", param=where)
    tag = value[field]
    if isinstance(tag, str) and tag in tags:
        return tags[tag]
    if any(tag in getattr(struct.cls, "unsupported_tags", ()) for struct in structs):
        return UnsupportedParameter(f"{where}: {describe.shown(tag)} is not supported by this server; it must be {allowed}.", param=where)
    return InvalidValue(f"{where} must be {allowed}, got {describe.shown(tag)}.", param=where)


def _check_struct(value: dict[str, Any], info: inspect.StructType, path: str, place: Place) -> BadRequest | None:
    fields = {field.encode_name: field for field in info.fields}
    if place:
        name = place[0]
        return _check(value[name], fields[name].type, _join(path, name), place[1:]) if name in value and name in fields else None
    known = [*fields, info.tag_field] if info.tag_field else [*fields]
    unknown = next((name for name in value if name not in known), None)
    if unknown is not None:
        return _unknown(unknown, known, path)
    missing = next((name for name, field in fields.items() if field.required and name not in value), None)
    if missing is None:
        return None
    where = _join(path, missing)
    return MissingParameter(f"{where} is required: {describe.allowed(fields[missing].type)}.", param=where)


def _unknown(name: str, known: list[str], path: str) -> UnknownParameter:
    where = _join(path, name)
    near = difflib.get_close_matches(name[:_MAX_NAME], known, n=3, cutoff=0.5)
    # Of names about as near, the one that begins alike is more often meant: by max_completion_tokens max_tokens, not min_tokens.
    nearest = max(near, key=lambda other: other[:3] == name[:3], default="")
    hint = f" Did you mean {_join(path, nearest)}?" if nearest else ""
    return UnknownParameter(f"{where} is not a parameter of this request.{hint}", param=where)


def _wrong(value: object, info: inspect.Type, path: str) -> InvalidValue:
    where = path or "The body"
    return InvalidValue(f"{where} must be {describe.allowed(info)}, got {describe.shown(value)}.", param=path or None)


def _fits(value: object, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _join(path: str, name: str) -> str:
    """A parameter's path; names come from clients, and a message has no room for a long one."""
    name = name if len(name) <= _MAX_NAME else name[:_MAX_NAME] + "…"
    return f"{path}.{name}" if path else name
