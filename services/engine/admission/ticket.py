"""What a request asks of admission, and what became of that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    import asyncio

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
"""The most urgent first."""


class Ask(Struct, frozen=True, kw_only=True):
    """A request for a slot.

    `max_tokens` bounds the answer, and is its length where `is_exact`. `num_bytes` is what it holds in memory while it waits. `deadline` is
    on the clock of `time.monotonic()`. `fingerprint` is the same when the same client asks the same again, 0 where nobody knows. `attempt`
    counts the pods that were asked, this one included.
    """

    num_prompt_tokens: int = 1
    max_tokens: int = 1
    is_exact: bool = False
    num_bytes: int = 0
    client: str = ""
    priority: Priority = "normal"
    deadline: float | None = None
    fingerprint: int = 0
    attempt: int = 1
    is_back: bool = False
    """It returns as it was told, so it has waited already."""


class Ticket:
    """One request's way through admission. Times are on the clock of `time.monotonic()`; 0 is not yet."""

    __slots__ = (
        "ask",
        "cost",
        "first_token_at",
        "num_held_tokens",
        "num_tokens",
        "place",
        "predicted_seconds",
        "predicted_wait",
        "queued_at",
        "started_at",
        "turn",
    )

    def __init__(self, ask: Ask, now: float, predicted_seconds: float | None, predicted_tokens: float) -> None:
        """`predicted_seconds`: how long it will hold its slot, None while nobody can know; `predicted_tokens` are those of its answer."""
        self.ask = ask
        self.queued_at = now
        self.started_at = self.first_token_at = 0.0
        self.num_tokens = 0
        self.num_held_tokens = 0
        """Of the engine's cache, as they were counted when it began."""
        self.place = 0
        """How many were to run before it, itself included, when it came; 0: it ran at once."""
        self.predicted_seconds = predicted_seconds
        self.predicted_wait: float | None = None
        self.cost = max(1.0, ask.num_prompt_tokens + predicted_tokens)
        """What it takes of its client's share, in tokens."""
        self.turn: asyncio.Future[None] | None = None

    @property
    def waited_seconds(self) -> float:
        """From its coming to its slot."""
        return self.started_at - self.queued_at

    @property
    def max_total_tokens(self) -> int:
        """What it may hold of the engine's cache."""
        return self.ask.num_prompt_tokens + self.ask.max_tokens
