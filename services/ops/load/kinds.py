"""What is asked: kinds of requests with their shares, and the plan of a whole load. Pure; a plan is the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from services.ops.load.arrivals import Stage, moments

if TYPE_CHECKING:
    from collections.abc import Sequence

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class Kind(Struct, frozen=True, kw_only=True):
    """One kind of request. `weight` is its share beside the others of a mix; each request takes one of `bodies`, drawn by the seed.

    A client that leaves does so after so many events with text, or so many seconds after it asked, whichever the kind names.
    """

    name: str
    path: str
    bodies: tuple[bytes, ...]
    is_stream: bool = False
    weight: float = 1.0
    headers: Mapping[str, str] = {}
    leave_after_tokens: int | None = None
    leave_after_seconds: float | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be asked."""
        if not self.bodies:
            raise ValueError(f"{self.name}: bodies must not be empty")
        if self.weight <= 0:
            raise ValueError(f"{self.name}: weight must be above 0, got {self.weight:g}")
        if self.leave_after_tokens is not None and not (self.is_stream and self.leave_after_tokens > 0):
            raise ValueError(f"{self.name}: leave_after_tokens must be above 0, and is for streams")
        if self.leave_after_seconds is not None and self.leave_after_seconds <= 0:
            raise ValueError(f"{self.name}: leave_after_seconds must be above 0, got {self.leave_after_seconds:g}")


class Planned(Struct, frozen=True):
    """One request of a load: when it is meant to begin, in which stage, and what it asks."""

    at: float
    stage: int
    kind: Kind
    body: bytes


def chat(
    name: str = "",
    *,
    is_stream: bool = False,
    prompts: Sequence[str] = ("hi",),
    max_tokens: int = 20,
    fields: Mapping[str, Any] | None = None,
    **more: Any,
) -> Kind:
    """Chat completions; `fields` go into every body, `more` are fields of `Kind`. Answers have exactly `max_tokens` tokens."""
    bodies = tuple(
        _body({"messages": [{"role": "user", "content": prompt}]}, max_tokens, fields, is_stream=is_stream) for prompt in prompts
    )
    return Kind(name=name or ("chat stream" if is_stream else "chat json"), path=CHAT, bodies=bodies, is_stream=is_stream, **more)


def completion(
    name: str = "",
    *,
    is_stream: bool = False,
    prompts: Sequence[str] = ("hi",),
    max_tokens: int = 20,
    fields: Mapping[str, Any] | None = None,
    **more: Any,
) -> Kind:
    """Completions of a text; otherwise as `chat`."""
    bodies = tuple(_body({"prompt": prompt}, max_tokens, fields, is_stream=is_stream) for prompt in prompts)
    usual = "completion stream" if is_stream else "completion json"
    return Kind(name=name or usual, path=COMPLETIONS, bodies=bodies, is_stream=is_stream, **more)


def plan(mix: Sequence[Kind], stages: Sequence[Stage], seed: int) -> list[Planned]:
    """Every request of a load, in order."""
    if not mix:
        raise ValueError("mix must have at least one kind")
    if len({kind.name for kind in mix}) < len(mix):
        raise ValueError(f"mix must have each name once, got {', '.join(kind.name for kind in mix)}")
    # Two sources: another mix leaves the moments as they are.
    times, choices = random.Random(seed), random.Random(seed + 1)
    weights = [kind.weight for kind in mix]
    planned = []
    for stage, at in moments(stages, times):
        kind = choices.choices(mix, weights)[0]
        planned.append(Planned(at, stage, kind, choices.choice(kind.bodies)))
    return planned


def _body(asked: Mapping[str, Any], max_tokens: int, fields: Mapping[str, Any] | None, *, is_stream: bool) -> bytes:
    body = {**asked, "max_tokens": max_tokens, "ignore_eos": True, "stream": is_stream}
    if is_stream:
        body["stream_options"] = {"include_usage": True}  # tokens are counted as the server counts them
    return msgspec.json.encode(body | dict(fields or {}))
