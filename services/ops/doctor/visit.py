"""What a check is given, and helpers that several checks share."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from services.ops.doctor.asking import Admin, Asker
    from services.ops.doctor.lane import Lane
    from services.ops.doctor.target import Target

_STEP_SECONDS = 0.1


@dataclass(frozen=True)
class Visit:
    """One examination. `lane` is there for every check that says it needs it."""

    target: Target
    asker: Asker
    admin: Admin
    is_quick: bool
    maybe_lane: Lane | None = None

    @property
    def lane(self) -> Lane:
        """The doctor's own pods behind Envoy."""
        assert self.maybe_lane is not None
        return self.maybe_lane


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Waits until something holds; False if it does not within `seconds`."""
    end = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(_STEP_SECONDS)
    return True
