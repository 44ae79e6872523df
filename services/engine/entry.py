"""The way into this pod: its admission, and what the pods have promised to those who come. Counts whom it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from services.openai.errors import ApiError, DeadlineUnreachable, QueueFull, QueueTimeout
from services.store.promises import Told
from services.store.sqlite import StoreError
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from services.engine.admission import Admission, Ask, Ticket
    from services.store.promises import SharedPromises
    from services.telemetry.metrics import Metrics

log = get_logger()

# Where nothing was seen of the engine yet, nobody can say when a slot will be free.
_UNKNOWN_WAIT_SECONDS = 1.0
# Nobody who is refused is told to come at this very moment, however soon a slot seems to be free.
_MIN_TOLD_SECONDS = 0.1


class Entry:
    """Where a request asks for its slot."""

    def __init__(self, admission: Admission, promises: SharedPromises, metrics: Metrics) -> None:
        """`promises` are those of all pods."""
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
        """A slot; who is refused here, but returns as a pod has told it, is asked for again as such."""
        try:
            ticket = await self.admission.acquire(ask, self._promises.until)
        except (QueueFull, DeadlineUnreachable) as refusal:
            told = await self._tell(ask, refusal)
            if not told.promise:
                raise _saying(refusal, told.seconds) from None
            if isinstance(refusal, QueueTimeout):  # it was let in, and has waited in vain
                raise self._renewed(ask, refusal, told.promise) from None
        else:
            self._promises.came(ask.fingerprint)
            return ticket
        try:
            ticket = await self.admission.acquire(structs.replace(ask, is_back=True))
        except (QueueFull, DeadlineUnreachable) as refusal:
            raise self._renewed(ask, refusal, told.promise) from None
        self._promises.keep(told.promise)
        return ticket

    async def _tell(self, ask: Ask, refusal: ApiError) -> Told:
        """What the line of those who are to return has for it."""
        wait, seconds = _wait(refusal), self.admission.forecast.seconds(ask)
        if refusal.retry_after_seconds is None or not ask.fingerprint:
            return Told(max(wait, self.admission.seconds_until(self._promises.until)))
        try:
            return await self._promises.tell(ask.fingerprint, wait, seconds or 0.0, was_told=ask.attempt > 1)
        except StoreError as error:
            log.warning("store.failed", error=str(error), effect="a refused client was told this pod's wait, without those told before it")
            self._metrics.store_errors.inc()
            return Told(wait)

    def _renewed(self, ask: Ask, refusal: ApiError, promise: int) -> ApiError:
        """It is told another time; at the first attempt another pod is still to be asked, and shall know that it was promised."""
        wait = _wait(refusal)
        if ask.attempt > 1:
            self._promises.renew(promise, wait)
        return _saying(refusal, wait)


def _wait(refusal: ApiError) -> float:
    wait = refusal.retry_after_seconds
    return _UNKNOWN_WAIT_SECONDS if wait is None else max(_MIN_TOLD_SECONDS, wait)


def _saying(refusal: ApiError, seconds: float) -> ApiError:
    return type(refusal)(f"{refusal.message} Retry in {seconds:.1f} s.", retry_after_seconds=seconds)
