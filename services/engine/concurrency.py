"""How many requests a client may have in progress at the same time, over all pods: from its coming to its last byte."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from services.openai.errors import RateLimitExceeded
from services.store.sqlite import StoreError
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from types import TracebackType

    from services.engine.admission import Admission
    from services.engine.client import Client
    from services.store.leases import Leases
    from services.telemetry.metrics import Metrics

log = get_logger()

REASON = "client_concurrency"
_UNKNOWN_SECONDS = 1.0


class Concurrency:
    """Keeps clients to their number."""

    def __init__(self, leases: Leases, admission: Admission, metrics: Metrics) -> None:
        """`admission` knows when one of the client's requests will end."""
        self.leases = leases
        self._admission = admission
        self._metrics = metrics

    def held(self, client: Client) -> Held:
        """To be entered for as long as a request of the client is in progress. Raises `RateLimitExceeded` there."""
        return Held(self, client)

    async def take(self, client: Client, limit: int) -> str | None:
        """A lease, or None where the store fails: its failure must not become the client's. Raises `RateLimitExceeded`."""
        try:
            lease = await self.leases.take(client.id, limit)
        except StoreError as error:
            log.error("store.failed", error=str(error), effect="the request was admitted without a look at its client's limit")  # noqa: TRY400
            self._metrics.store_errors.inc()
            return None
        if lease is None:
            self._metrics.rejected.labels(self._metrics.model, REASON).inc()
            seconds = self._admission.soonest_end(client.id, time.monotonic()) or _UNKNOWN_SECONDS
            message = (
                f"This client has {limit} requests in progress, which is its limit (max_concurrent_requests). Retry in {seconds:.1f} s."
            )
            raise RateLimitExceeded(message, retry_after_seconds=seconds)
        return lease


class Held:
    """One request's share of its client's number; nothing for a client without one."""

    def __init__(self, concurrency: Concurrency, client: Client) -> None:
        """Takes nothing yet."""
        self._concurrency = concurrency
        self._client = client
        self._lease: str | None = None

    async def __aenter__(self) -> None:
        if self._client.max_concurrent is not None:
            self._lease = await self._concurrency.take(self._client, self._client.max_concurrent)

    async def __aexit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self._lease is not None:
            self._concurrency.leases.give_back(self._lease)
