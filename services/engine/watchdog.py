"""Watches the engine from the event loop: generations that bring no token, an engine that stands still, an engine that died.

The event loop itself is watched from outside, by the runner. Time counts while this process runs: a pod that was stopped for a minute, or a
machine that slept, has not stalled.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from services.engine.ending import EXIT_ENGINE_DIED, EXIT_ENGINE_STALLED
from services.engine.generation import PROBE_ID, BackendError
from services.engine.keys import GENERATOR, HEALTH, METRICS, POD, RUNS, WILL
from services.openai.errors import EngineError
from services.openai.upstream_errors import UpstreamTimeout
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from aiohttp import web

    from services.engine.runs import Run
    from services.openai.errors import ApiError

log = get_logger()

_MAX_TICK_SECONDS = 1.0
_TICKS = 20
"""How often it looks within the limit, which is how exactly the limit is kept."""


class Watchdog:
    """Ends generations that stalled; where the engine stands still the pod is not ready until a probe of ours brings a token.

    An engine that gave others a token lately works, and only the one request ends. Otherwise the probe has the limit once more; if it
    brings nothing, the pod ends, so that the runner starts a new one. Behind a remote engine only requests end: the pod is well, and a new
    one would ask the same upstream.
    """

    def __init__(self, app: web.Application) -> None:
        """`app`: the pod's, with all its parts."""
        self._runs, self._generator, self._health = app[RUNS], app[GENERATOR], app[HEALTH]
        self._will, self._metrics = app[WILL], app[METRICS]
        self._limit_seconds = app[POD].settings.stall_timeout_seconds
        self._whole_limit_seconds = app[POD].settings.request_timeout_seconds
        self._num_tokens = 0
        self._still_seconds = 0.0
        """Since any request got a token, while there were some."""
        self._probing: asyncio.Task[None] | None = None

    async def watch(self) -> None:
        """For ever; to be cancelled."""
        death = asyncio.create_task(self._await_death())
        tick = min(_MAX_TICK_SECONDS, self._limit_seconds / _TICKS)
        try:
            while True:
                await asyncio.sleep(tick)
                self._look(tick)
        finally:
            death.cancel()
            if self._probing is not None:
                self._probing.cancel()

    def _look(self, seconds: float) -> None:
        """Ages every run by what has passed, and ends those that are too old."""
        num_tokens = self._runs.num_tokens
        is_still = bool(self._runs.active) and num_tokens == self._num_tokens
        self._still_seconds = self._still_seconds + seconds if is_still else 0.0
        self._num_tokens = num_tokens
        # An engine that is full lets some wait, which is no stall as long as the others get tokens.
        is_full = not is_still and self._generator.load().waiting > 0
        ages = [(run, run.age(0.0 if is_full and not run.num_tokens else seconds)) for run in self._runs.active]
        stalled = [run for run, age in ages if age >= self._limit_of(run)]
        if not stalled:
            return
        is_still = self._still_seconds >= self._limit_seconds / 2 and not self._generator.is_remote
        if is_still and self._health.become("stalled", self._error_of(stalled[0]).message):
            self._probing = asyncio.create_task(self._probe())
        for run in stalled:
            log.error("run.stalled", request_id=run.prepared.request_id, tokens=run.num_tokens, limit_seconds=self._limit_of(run))
            self._metrics.stalls.inc()
            run.broke = True
            run.end(self._error_of(run))

    def _limit_of(self, run: Run) -> float:
        """How long it may bring nothing."""
        return self._whole_limit_seconds if run.prepared.comes_whole else self._limit_seconds

    def _error_of(self, run: Run) -> ApiError:
        name = "REQUEST_TIMEOUT_SECONDS" if run.prepared.comes_whole else "STALL_TIMEOUT_SECONDS"
        limit = f"{name}={self._limit_of(run):g}"
        if self._generator.is_remote:
            return UpstreamTimeout(f"The upstream brought nothing for {limit}")
        return EngineError(f"The engine brought no token for {limit}")

    async def _probe(self) -> None:
        """Asks the engine for one token, for as long as the limit says; what comes of it decides about the pod."""
        try:
            await asyncio.wait_for(self._until_it_works(), self._limit_seconds)
        except asyncio.TimeoutError:
            if self._health.state == "stalled":
                limit = f"STALL_TIMEOUT_SECONDS={self._limit_seconds:g}"
                self._will.end(EXIT_ENGINE_STALLED, f"the engine stalled: no token for {limit}, nor for a probe in the same time after it")
        else:
            self._health.become("ready")

    async def _until_it_works(self) -> None:
        while not await self._does_it_work():  # noqa: ASYNC110 - an engine has no event for it
            await asyncio.sleep(_MAX_TICK_SECONDS)

    async def _does_it_work(self) -> bool:
        try:
            await self._generator.try_out(PROBE_ID, 1)
        except BackendError as error:
            log.warning("engine.probe_failed", reason=str(error))
            return False
        return True

    async def _await_death(self) -> None:
        reason = await self._generator.died()
        self._will.end(EXIT_ENGINE_DIED, f"the engine died: {reason}")
