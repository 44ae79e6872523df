"""What stands in a clients file: classes of limits and clients. Bounds are here; what must fit together is checked where it is read."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

# `\Z`, not `$`, which lets a line's end pass: these go into headers.
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9@._-]{0,63}\Z")]
"""A client's or a class's name: it goes into headers, logs and metrics."""
Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""SHA-256 of a key, in hexadecimal."""
ModelId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9@._:/-]{0,127}\Z")]
Moment = Annotated[str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2})?(Z|[+-][0-9]{2}:[0-9]{2})?)?\Z")]
"""`2027-01-31` (its first instant) or `2027-01-31T18:00`, UTC unless a zone follows."""

MAX_REQUESTS_PER_MINUTE = 6_000_000
MAX_TOKENS_PER_MINUTE = 1_000_000_000
MAX_CONCURRENT_REQUESTS = 1_000_000
DEFAULT_CLASS = "standard"


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """A class of limits. `burst` requests may come at once; they come back evenly, `requests_per_minute` of them a minute."""

    requests_per_minute: Annotated[int, Meta(ge=1, le=MAX_REQUESTS_PER_MINUTE)]
    burst: Annotated[int, Meta(ge=1, le=MAX_REQUESTS_PER_MINUTE)]


class Key(Struct, frozen=True, forbid_unknown_fields=True):
    """A key by its hash; from `expires` on it is refused."""

    sha256: Hash
    expires: Moment | None = None


class Client(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who calls. A key may be written as its hash alone. Without `models` all may be used, without a number there is no such limit."""

    name: Name
    keys: tuple[Key | Hash, ...]
    role: Literal["user", "ops"] = "user"
    limit_class: Name = field(default=DEFAULT_CLASS, name="class")
    max_priority: Literal["high", "normal", "low"] = "normal"
    tokens_per_minute: Annotated[int, Meta(ge=1, le=MAX_TOKENS_PER_MINUTE)] | None = None
    max_concurrent_requests: Annotated[int, Meta(ge=1, le=MAX_CONCURRENT_REQUESTS)] | None = None
    models: Annotated[tuple[ModelId, ...], Meta(min_length=1)] | None = None
    expires: Moment | None = None

    def all_keys(self) -> list[Key]:
        """Its keys, each with the earlier of its own and the client's end."""
        keys = [key if isinstance(key, Key) else Key(key) for key in self.keys]
        return [Key(key.sha256, _earlier(key.expires, self.expires)) for key in keys]


class ClientsFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole clients file. Its class `standard` need not be declared."""

    clients: tuple[Client, ...]
    limits: dict[Name, Limits] = {}

    def classes(self) -> dict[str, Limits]:
        """Every class by its name."""
        return {DEFAULT_CLASS: Limits(300, 30), **self.limits}


def unix_seconds(moment: Moment) -> int:
    """A moment on the clock of `time.time()`; raises `ValueError` for a date that does not exist."""
    found = dt.datetime.fromisoformat(moment.replace("Z", "+00:00"))
    return int((found if found.tzinfo else found.replace(tzinfo=dt.timezone.utc)).timestamp())


def _earlier(one: Moment | None, other: Moment | None) -> Moment | None:
    given = [moment for moment in (one, other) if moment is not None]
    return min(given, key=unix_seconds) if given else None
