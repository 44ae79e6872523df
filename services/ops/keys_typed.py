"""What people type after `convoy keys`, checked: each mistake is one line that names the option and what it may be."""

from __future__ import annotations

import re
import time
from typing import Any

import msgspec

from services.clients.declared import Client, unix_seconds
from services.clients.reading import ALLOWED, masked, parse
from services.ops.state import OpsError

_KEEP = re.compile(r"(\d{1,6})([smhd])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_KEEP_DAYS = 366
_WORDS = ALLOWED | {"models": "model ids with commas between them", "expires": f"{ALLOWED['expires']}, to come"}


def client(given: dict[str, Any]) -> Client:
    """A client from its fields as text."""
    refuse_key("NAME", given["name"])
    for field, value in given.items():
        if not _is_allowed(field, value):
            option = "NAME" if field == "name" else f"--{field.replace('_', '-')}"
            got = ",".join(value) if isinstance(value, list) else value
            raise OpsError(masked(f"{option} must be {_WORDS[field]}, got {got[:80]!r}"))
    return msgspec.convert(given, Client, strict=False)


def check_class(text: str, file_name: str, limit_class: str) -> None:
    """A class must be one of the file's."""
    classes = parse(text, file_name).classes()
    if limit_class not in classes:
        raise OpsError(f"--class must be one that {file_name} declares under `limits:`: {', '.join(sorted(classes))}; got {limit_class!r}")


def refuse_key(what: str, value: str) -> None:
    """A key has no place on a command line, which others can see and shells remember."""
    if value.startswith("sk-"):
        raise OpsError(f"{what} looks like a key: Convoy makes keys and is never given one; a command line can be seen and is remembered")


def hash_prefix(value: str) -> str:
    """The beginning of a hash, long enough to mean something."""
    refuse_key("--key", value)
    if not re.fullmatch(r"[0-9a-fA-F]{4,64}", value):
        raise OpsError("--key must be the first 4 to 64 hexadecimal digits of a key's hash, see `convoy keys list`")
    return value.lower()


def seconds(keep: str) -> int:
    """A length of time such as 24h."""
    found = _KEEP.fullmatch(keep)
    length = int(found[1]) * _SECONDS[found[2]] if found else 0
    if (not found and keep != "0") or length > _MAX_KEEP_DAYS * _SECONDS["d"]:
        raise OpsError(f"--keep must be 0 or a time such as 30m, 24h or 7d, at most {_MAX_KEEP_DAYS}d, got {keep[:40]!r}")
    return length


def _is_allowed(field: str, value: object) -> bool:
    try:
        found = msgspec.convert({"name": "x", "keys": [], field: value}, Client, strict=False)
        return field != "expires" or found.expires is None or unix_seconds(found.expires) > time.time()
    except ValueError:
        return False
