"""Types and values of JSON in words for people, and the few questions on single values that the words answer."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from msgspec import inspect

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_TEXT = 40
_MAX_DIGITS = 30


def is_kind(value: object, info: inspect.Type) -> bool:
    """Whether the JSON type of `value` is that of `info`, whatever its size or content."""
    if isinstance(info, inspect.AnyType):
        return True
    if isinstance(info, inspect.Metadata):
        return is_kind(value, info.type)
    if isinstance(info, inspect.LiteralType):
        return type(value) in {type(option) for option in info.values}
    return type(value) in _PYTHON_TYPES.get(type(info), ())


_PYTHON_TYPES: dict[type[inspect.Type], tuple[type, ...]] = {
    inspect.NoneType: (type(None),),
    inspect.BoolType: (bool,),
    inspect.IntType: (int,),
    inspect.FloatType: (int, float),
    inspect.StrType: (str,),
    inspect.ListType: (list,),
    inspect.DictType: (dict,),
    inspect.StructType: (dict,),
}


def is_allowed(value: object, info: inspect.Type) -> bool:
    """Whether a single value of the right JSON type (`is_kind`) keeps the bounds of `info`."""
    if isinstance(info, inspect.LiteralType):
        return value in info.values
    if isinstance(info, inspect.StrType):
        return isinstance(value, str) and has_length(len(value), info)
    if isinstance(info, inspect.IntType | inspect.FloatType):
        return isinstance(value, int | float) and _in_bounds(value, info)
    return True


def _in_bounds(value: float, info: inspect.IntType | inspect.FloatType) -> bool:
    above = (info.ge is None or value >= info.ge) and (info.gt is None or value > info.gt)
    return above and (info.le is None or value <= info.le) and (info.lt is None or value < info.lt)


def has_length(length: int, info: inspect.StrType | inspect.ListType | inspect.DictType) -> bool:
    """Whether a text, list or object of this many characters or items keeps the bounds of `info`."""
    return (info.min_length or 0) <= length <= (math.inf if info.max_length is None else info.max_length)


def allowed(info: inspect.Type) -> str:
    """What a type takes, as the end of "must be …"; null is named only where nothing else is taken."""
    if isinstance(info, inspect.Metadata):
        return allowed(info.type)
    if isinstance(info, inspect.UnionType):
        words = [allowed(option) for option in info.types if not isinstance(option, inspect.NoneType)]
        return " or ".join(dict.fromkeys(words)) or "null"
    if isinstance(info, inspect.LiteralType):
        return one_of(info.values)
    return _number(info) if isinstance(info, inspect.IntType | inspect.FloatType) else _thing(info)


def _thing(info: inspect.Type) -> str:
    if isinstance(info, inspect.ListType) and isinstance(info.item_type, inspect.LiteralType) and info.max_length == 1:
        return json.dumps(info.item_type.values)
    article, noun, item = _WORDS[type(info)]
    if not isinstance(info, inspect.StrType | inspect.ListType | inspect.DictType):
        return f"{article}{noun}"
    if info.max_length == 0:
        return f"an empty {noun}"
    if isinstance(info, inspect.ListType):
        item = _ITEMS.get(type(info.item_type), item)
    return f"{article}{noun}{_size(info, item)}"


_WORDS: dict[type[inspect.Type], tuple[str, str, str]] = {
    inspect.NoneType: ("", "null", ""),
    inspect.AnyType: ("", "any value", ""),
    inspect.BoolType: ("", "true or false", ""),
    inspect.StrType: ("a ", "string", "character"),
    inspect.ListType: ("a ", "list", "item"),
    inspect.DictType: ("an ", "object", "key"),
    inspect.StructType: ("an ", "object", ""),
}
_ITEMS: dict[type[inspect.Type], str] = {inspect.StrType: "string", inspect.IntType: "whole number", inspect.StructType: "object"}


def one_of(options: Sequence[object]) -> str:
    """The options in JSON, as a choice."""
    shown_options = [json.dumps(option) for option in options]
    return shown_options[0] if len(shown_options) == 1 else f"{', '.join(shown_options[:-1])} or {shown_options[-1]}"


def shown(value: object) -> str:
    """A value of a request for its error message: never long, whatever was sent."""
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, dict):
        return "an object" if value else "an empty object"
    if isinstance(value, float) and math.isinf(value):
        return "a number that is out of range"
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        return f"a string of {len(value)} characters"
    if isinstance(value, int) and abs(value) >= 10**_MAX_DIGITS:
        return f"a whole number of more than {_MAX_DIGITS} digits"
    return json.dumps(value, ensure_ascii=False)


def _size(info: inspect.StrType | inspect.ListType | inspect.DictType, item: str) -> str:
    low, high = info.min_length or 0, info.max_length
    if high is None:
        return f" of at least {low} {item}{'s' if low > 1 else ''}" if low else ""
    return f" of {f'{low} to {high}' if low else f'at most {high}'} {item}s"


def _number(info: inspect.IntType | inspect.FloatType) -> str:
    if info.ge is not None and info.ge == info.le:
        return f"{info.ge:g}"
    kind = "a whole number" if isinstance(info, inspect.IntType) else "a number"
    if info.gt is not None:
        return f"{kind} above {info.gt} and at most {info.le}"
    return kind if info.ge is None else f"{kind} from {info.ge} to {info.le}"
