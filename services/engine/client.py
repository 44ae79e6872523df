"""Who asks: the client that the edge has recognised, as its headers `x-client-*` tell.

They are believed: only Envoy reaches a pod, and it takes away what callers send under these names. A value that makes no sense is
therefore a mistake of ours, for the log and not for the client.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from msgspec import Struct

from services.engine.admission import PRIORITIES, Priority
from services.openai.errors import Forbidden, InvalidValue
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

log = get_logger()

_NAMES = ("id", "role", "class", "max-concurrent", "tokens-per-minute", "max-priority", "models")
_HEADERS = tuple(f"x-client-{name}" for name in _NAMES)
# Clients are few; this is only there so that a mistake of the edge cannot fill the memory.
_MAX_KEPT = 4096
_MAX_DIGITS = 15
PRIORITY_HEADER = "x-priority"


class Client(Struct, frozen=True, kw_only=True):
    """One client and what it may. Without a client's headers everything is allowed, to nobody in particular."""

    id: str = ""
    role: str = ""
    limits_class: str = ""
    """Named `class` in its header."""
    max_concurrent: int | None = None
    tokens_per_minute: int | None = None
    max_priority: Priority = "high"
    """The highest that it may ask for."""
    models: tuple[str, ...] | None = None
    """The ids of the models that it may use; None is all."""

    def may_use(self, model: str) -> bool:
        """Whether the model is there for this client."""
        return self.models is None or model in self.models

    def check_model(self, model: str) -> None:
        """Raises `Forbidden`, which names the models that the client may use."""
        if not self.may_use(model):
            allowed = ", ".join(map(repr, self.models or ())) or "none"
            raise Forbidden(f"This client may not use model {model[:200]!r}; it may use: {allowed}", param="model")


def priority_of(headers: Mapping[str, str], client: Client) -> Priority:
    """The priority that a request asks for in `x-priority`, normal if it does not, and never above its client's. Raises `InvalidValue`."""
    asked = headers.get(PRIORITY_HEADER, "normal")
    if asked not in PRIORITIES:
        raise InvalidValue(f"{PRIORITY_HEADER} must be one of {', '.join(PRIORITIES)}, got {asked[:100]!r}", param=PRIORITY_HEADER)
    return PRIORITIES[max(PRIORITIES.index(asked), PRIORITIES.index(client.max_priority))]


def client_of(headers: Mapping[str, str]) -> Client:
    """The client of a request."""
    return _client(*(headers.get(name) for name in _HEADERS))


@functools.lru_cache(_MAX_KEPT)
def _client(*values: str | None) -> Client:
    told = dict(zip(_NAMES, values, strict=True))
    models = told["models"]
    return Client(
        id=told["id"] or "",
        role=told["role"] or "",
        limits_class=told["class"] or "",
        max_concurrent=_number("max-concurrent", told["max-concurrent"]),
        tokens_per_minute=_number("tokens-per-minute", told["tokens-per-minute"]),
        max_priority=_priority(told["max-priority"]),
        models=None if models is None else tuple(name.strip() for name in models.split(",") if name.strip()),
    )


def _priority(text: str | None) -> Priority:
    if text is None:
        return "high"
    if text in PRIORITIES:
        return text
    log.error("client.bad_header", header="x-client-max-priority", value=text[:100], allowed=", ".join(PRIORITIES))
    return "normal"


@functools.lru_cache(_MAX_KEPT)  # says each mistake once
def _number(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS:
        return int(text)
    log.error("client.bad_header", header=f"x-client-{name}", value=text[:100], allowed="a whole number, at least 0")
    return None
