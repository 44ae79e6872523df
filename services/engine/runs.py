"""Runs: generations owned by the app, not by the handler that asked for them.

A run takes a slot, drives its generator in a task of its own and keeps what came; handlers subscribe to it. When the last subscriber
leaves before the end, the run is cancelled and its slot is free again.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from services.engine.generation import BackendError, BackendUnavailable
from services.engine.subscription import Subscription
from services.openai.errors import ApiError, EngineError, NotReady
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.engine.admission import Ask, Ticket
    from services.engine.backends import AnyGenerator, AnyPrepared
    from services.engine.entry import Entry
    from services.engine.generation import FinishReason, TokenEvent
    from services.telemetry.metrics import Metrics

log = get_logger()


_BROKEN = 500


class Runs:
    """Starts runs, and knows those under way."""

    def __init__(self, generator: AnyGenerator, entry: Entry, metrics: Metrics, check_ready: Callable[[], None] = lambda: None) -> None:
        """All three are the pod's own; `check_ready` raises what a request is told whose turn comes while the engine takes none."""
        self.generator = generator
        self._entry = entry
        self._admission = entry.admission
        self._metrics = metrics
        self._check_ready = check_ready
        self._num_tokens_of_ended = 0
        self.active: set[Run] = set()
        """Those under way."""

    async def start(self, prepared: AnyPrepared, ask: Ask) -> Run:
        """Waits for a slot and begins; the caller subscribes before it awaits anything else.

        Raises `QueueFull`, `DeadlineUnreachable` or `Draining`, and `NotReady` where the engine fell still while the request waited.
        """
        ticket = await self._entry.admit(ask)
        try:
            self._check_ready()
        except ApiError:
            self._admission.release(ticket, None)  # which is the next one's turn to hear it
            raise
        run = Run(prepared, ticket, self)
        self.active.add(run)
        run.task.add_done_callback(lambda _: self.active.discard(run))
        return run

    @property
    def num_tokens(self) -> int:
        """Tokens of all runs so far."""
        return self._num_tokens_of_ended + sum(run.num_tokens for run in self.active if not run.is_over)

    async def idle(self) -> None:
        """Returns when no run is under way."""
        while self.active:
            await asyncio.wait([run.task for run in self.active])

    def end_all(self, error: ApiError) -> None:
        """Ends every run that is not finished; its subscribers get what came until now, then `error`."""
        for run in list(self.active):
            run.end(error)

    async def cancel_all(self) -> None:
        """Ends every run now; their subscribers get an `EngineError`."""
        for run in list(self.active):
            run.task.cancel()
        await self.idle()

    def took(self, run: Run, num_tokens: int, now: float) -> None:
        """A run of ours got tokens."""
        self._admission.took(run.ticket, num_tokens, now)

    def ended(self, run: Run) -> None:
        """A run of ours is over."""
        metrics, seconds = self._metrics, run.ended_at - run.started_at
        self._num_tokens_of_ended += run.num_tokens
        self._admission.release(run.ticket, run.finish_reason)
        if run.finish_reason is not None and run.ticket.predicted_seconds is not None:
            metrics.duration_error.observe(run.ticket.predicted_seconds - seconds)
        metrics.prompt_tokens.inc(run.num_prompt_tokens)
        metrics.prompt_size.observe(run.num_prompt_tokens)
        metrics.generation_tokens.inc(run.num_tokens)
        metrics.cached_prompt_tokens.inc(run.num_cached_tokens)
        metrics.answer_size.observe(run.num_tokens)
        metrics.generation_latency.observe(seconds)
        if run.first_token_at and run.num_tokens > 1:
            metrics.inter_token.observe((run.last_token_at - run.first_token_at) / (run.num_tokens - 1))
        if run.broke:
            metrics.engine_errors.inc()


class Run:
    """One generation and what came of it so far. Times are on the clock of `time.monotonic()`, in seconds; 0 is not yet."""

    def __init__(self, prepared: AnyPrepared, ticket: Ticket, runs: Runs) -> None:
        """Begins at once."""
        self.prepared = prepared
        self.ticket = ticket
        self.started_at = time.monotonic()
        self.first_token_at = self.last_token_at = self.ended_at = 0.0
        self.num_prompt_tokens = prepared.num_prompt_tokens
        self.num_tokens = self.num_cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.broke = False
        self._silent_seconds = 0.0
        self._num_tokens_seen = 0
        self._error: ApiError | None = None
        self._pieces: list[Any] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._num_subscribers = 0
        self._runs = runs
        self.task = asyncio.create_task(self._drive())
        # A task that is cancelled before its first step never comes to its `finally`; its slot must come free all the same.
        self.task.add_done_callback(lambda _: self._settle())

    def subscribe(self) -> Subscription:
        """A reader of the run from its beginning; `close` it."""
        self._num_subscribers += 1
        return Subscription(self)

    def leave(self) -> None:
        """A subscriber is gone; the last one takes an unfinished run with it."""
        self._num_subscribers -= 1
        if self._num_subscribers == 0:
            self.task.cancel()

    def end(self, error: ApiError) -> None:
        """Cancels a run that is not finished; its subscribers get what came until now, then `error`."""
        if self.finish_reason is None and not self.is_over:
            self._error = error
            self.task.cancel()

    def age(self, seconds: float) -> float:
        """Tells it that `seconds` have passed since the last call; how long it has brought no token, as far as that was told."""
        self._silent_seconds = self._silent_seconds + seconds if self.num_tokens == self._num_tokens_seen else 0.0
        self._num_tokens_seen = self.num_tokens
        return self._silent_seconds

    def read(self, start: int) -> tuple[Any, int]:
        """The text, or what a remote engine's answer has in its place, from piece `start` on, and the piece to go on from."""
        end = len(self._pieces)
        return (self._pieces[start] if end - start == 1 else self.prepared.nothing.join(self._pieces[start:])), end

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.ended_at > 0

    def raise_error(self) -> None:
        """Raises what ended the run, if it was an error."""
        if self._error is not None:
            raise self._error

    async def has_begun(self, within_seconds: float) -> bool:
        """Waits so long at most for the first token or the end; whether one is there."""
        is_late = False

        def expire() -> None:
            nonlocal is_late
            is_late = True
            self.wake()

        timer = asyncio.get_running_loop().call_later(within_seconds, expire)
        try:
            while not self.first_token_at and not self.is_over and not is_late:
                await self.changed()
        finally:
            timer.cancel()
        return self.first_token_at > 0 or self.is_over

    async def changed(self) -> None:
        """Waits for the next piece or the end; may wake for nothing."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    async def _drive(self) -> None:
        try:
            async with aclosing(self._runs.generator.generate(self.prepared)) as events:  # type: ignore[type-var,arg-type]  # of one kind
                async for event in events:
                    self._take(event)
            if self.finish_reason is None:
                self._fail("The engine ended this request without a reason")
        except ApiError as error:
            self._error, self.broke = error, error.status >= _BROKEN
        except BackendUnavailable as error:
            self._error = NotReady(f"The engine takes no request now: {error}", retry_after_seconds=1)
        except BackendError as error:
            self._fail(f"The engine broke on this request: {error}")
        except Exception as error:  # the worker's boundary: whatever broke, the subscribers must learn of it and the slot come free
            log.exception("run.broke", error_type=type(error).__name__, request_id=self.prepared.request_id)
            self._fail("The engine broke on this request")
        finally:
            self._settle()

    def _take(self, event: TokenEvent) -> None:
        now = time.monotonic()
        if not self.first_token_at:
            self.first_token_at = now
        self.last_token_at = now
        self._runs.took(self, event.num_tokens, now)
        self.num_tokens += event.num_tokens
        self.num_cached_tokens += event.num_cached_tokens
        if event.num_prompt_tokens is not None:
            self.num_prompt_tokens = event.num_prompt_tokens
        self._pieces.append(event.text)
        self.finish_reason = event.finish_reason
        self.wake()

    def _settle(self) -> None:
        """Tells, once, that nothing more will come."""
        if self.is_over:
            return
        if self.finish_reason is None and self._error is None:
            self._error = EngineError("The generation was cancelled")
        self.ended_at = time.monotonic()
        self._runs.ended(self)
        self.wake()

    def _fail(self, message: str) -> None:
        self.broke = True
        self._error = EngineError(message)

    def wake(self) -> None:
        """Has every subscriber look."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
