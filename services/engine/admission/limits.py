"""What a pod holds."""

from __future__ import annotations

from msgspec import Struct


class Limits(Struct, frozen=True, kw_only=True):
    """What a pod holds. `capacity` None is a queue without bound, in which everybody waits as long as it takes (no backpressure).

    `max_queue_bytes` bounds what waits in memory, `max_total_tokens` what runs in the engine's cache (0: nothing but the slots): of each
    request prompt and longest answer or, `by_expected`, the likely one.
    """

    slots: int
    capacity: int | None
    timeout_seconds: float
    max_queue_bytes: int = 1 << 60
    max_total_tokens: int = 0
    by_expected: bool = False
