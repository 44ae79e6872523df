"""Who runs, who waits, who is refused: the only queue of a pod.

A bounded first-in-first-out queue in front of `slots`; a slot that frees goes to the oldest waiter at once. It decides and holds futures,
and knows neither HTTP nor engines.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from typing import TYPE_CHECKING

from msgspec import Struct

from services.openai.errors import Draining, QueueFull

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.openai.errors import ApiError

_MAX_RETRY_AFTER_SECONDS = 60


class Admitted(Struct, frozen=True):
    """What a request's way into its slot was: `place` in the queue when it came (0: ran at once) and seconds waited."""

    place: int
    waited_seconds: float


class Admission:
    """Slots and the queue before them; one event loop only."""

    def __init__(
        self, *, slots: int, capacity: int | None, timeout_seconds: float, on_reject: Callable[[str], None] = lambda _: None
    ) -> None:
        """`capacity` None is a queue without bound; `on_reject` is told each refusal's reason."""
        self._slots = slots
        self._capacity = capacity
        self._timeout_seconds = timeout_seconds
        self._on_reject = on_reject
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._mean_hold_seconds = 1.0
        self._draining = False

    @property
    def running(self) -> int:
        """Slots in use."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    async def acquire(self) -> Admitted:
        """Takes a slot, waiting in line for one; the caller owes one `release`. Raises `QueueFull` or `Draining`."""
        if self._draining:
            raise self._refuse(Draining("This pod is stopping and takes no new request"), "draining")
        if self._running < self._slots:
            self._running += 1
            return Admitted(place=0, waited_seconds=0.0)
        if self._capacity is not None and len(self._waiting) >= self._capacity:
            limit = f"{self._slots} requests run and {len(self._waiting)} wait, which is all this pod takes"
            raise self._refuse(QueueFull(limit, retry_after_seconds=self._retry_after_seconds()), "queue_full")
        return await self._wait()

    def release(self, held_seconds: float) -> None:
        """Gives a slot back after `held_seconds`; the oldest waiter has it at once."""
        self._mean_hold_seconds += 0.1 * (held_seconds - self._mean_hold_seconds)
        self._pass_on()

    def drain(self) -> None:
        """From now on everything new, and everything that waits, is refused with `Draining`, to be tried on another pod."""
        self._draining = True
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(self._refuse(Draining("This pod is stopping; the request had not begun"), "draining"))

    async def _wait(self) -> Admitted:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        place, start = len(self._waiting), time.monotonic()
        timer = asyncio.get_running_loop().call_later(self._timeout_seconds, self._time_out, waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._pass_on()  # the slot came at the very moment the client left
            else:
                self._forget(waiter)
            raise
        finally:
            timer.cancel()
        return Admitted(place=place, waited_seconds=time.monotonic() - start)

    def _time_out(self, waiter: asyncio.Future[None]) -> None:
        if waiter.done():
            return
        self._forget(waiter)
        message = f"No slot became free within QUEUE_TIMEOUT_SECONDS={self._timeout_seconds:g}"
        waiter.set_exception(self._refuse(QueueFull(message, retry_after_seconds=self._retry_after_seconds()), "queue_timeout"))

    def _pass_on(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._running -= 1

    def _forget(self, waiter: asyncio.Future[None]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)

    def _retry_after_seconds(self) -> int:
        """Whole seconds until a place should be free, from the mean time that slots were held."""
        seconds = self._mean_hold_seconds / self._slots * (1 + len(self._waiting))
        return min(_MAX_RETRY_AFTER_SECONDS, max(1, math.ceil(seconds)))

    def _refuse(self, error: ApiError, reason: str) -> ApiError:
        self._on_reject(reason)
        return error
