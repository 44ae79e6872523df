"""The way into this pod: its admission, and what other pods have promised to who comes. Counts whom it refuses."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec import structs

from services.engine.admission.promises import window
from services.openai.errors import ApiError, DeadlineUnreachable, QueueFull, QueueTimeout
from services.store.sqlite import StoreError
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from services.engine.admission import Admission, Ask, Ticket
    from services.store.promises import SharedPromises
    from services.telemetry.metrics import Metrics

log = get_logger()


class Entry:
    """Where a request asks for its slot."""

    def __init__(self, admission: Admission, promises: SharedPromises, metrics: Metrics) -> None:
        """`promises` are those of all pods, the others the pod's own."""
        self.admission = admission
        self._promises = promises
        self._metrics = metrics

    async def admit(self, ask: Ask) -> Ticket:
        """Waits for a slot; the caller owes its release. Raises `QueueFull`, `DeadlineUnreachable` or `Draining`."""
        try:
            ticket = await self._ticket(ask)
        except ApiError as refusal:
            reason = "queue_timeout" if isinstance(refusal, QueueTimeout) else refusal.code
            self._metrics.rejected.labels(self._metrics.model, reason).inc()
            raise
        self._metrics.queue_wait.observe(ticket.waited_seconds)
        if ticket.place and ticket.predicted_wait is not None:
            self._metrics.wait_error.observe(ticket.predicted_wait - ticket.waited_seconds)
        return ticket

    async def _ticket(self, ask: Ask) -> Ticket:
        """A slot; who is refused here, but returns as another pod has told it, is asked for again as such."""
        try:
            return await self.admission.acquire(ask)
        except (QueueFull, DeadlineUnreachable) as refusal:
            if not await self._is_back(ask, refusal):
                raise
        try:
            ticket = await self.admission.acquire(structs.replace(ask, is_promised=True))
        except (QueueFull, DeadlineUnreachable) as refusal:
            if ask.attempt > 1:  # at the first attempt another pod is still to be asked, and shall know that it was promised
                self._promises.renew(ask.fingerprint, *_window(refusal))
            raise
        self._promises.keep(ask.fingerprint)
        return ticket

    async def _is_back(self, ask: Ask, refusal: ApiError) -> bool:
        try:
            return await self._promises.recall(ask.fingerprint, *_window(refusal))
        except StoreError as error:
            log.warning("store.failed", error=str(error), effect="nobody knows whether another pod had told this client to return")
            self._metrics.store_errors.inc()
            return False


def _window(refusal: ApiError) -> tuple[float, float]:
    return window(refusal.retry_after_seconds or 0.0, time.monotonic())
