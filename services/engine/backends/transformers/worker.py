"""The engine's thread: it owns model, cache and sampling, and runs one step after the other.

Requests come through a queue, events leave in one `call_soon_threadsafe` a step; the event loop never waits for it and it never waits
for a reader.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from services.engine.backends import on_loop
from services.engine.backends.rate import Rate
from services.engine.backends.transformers.drawn import Drawn, engine_error
from services.engine.generation import BackendError, Load
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from services.engine.backends.transformers.batch import Batch
    from services.engine.backends.transformers.scheduling import Scheduler
    from services.engine.backends.transformers.sequence import Sequence

log = get_logger()


class Worker:
    """Starts a thread that makes the model and then serves until `stop`."""

    def __init__(self, make_batch: Callable[[], Batch], scheduler: Scheduler, max_rows: int, capacity: Callable[[], int]) -> None:
        """`make_batch` loads the model, on the thread; `capacity`, the tokens of all rows at most, is asked after that."""
        self._make_batch = make_batch
        self._scheduler = scheduler
        self._max_rows = max_rows
        self._capacity = capacity
        self._inbox: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._waiting: deque[Sequence] = deque()
        self._rate = Rate()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.load = Load()

    def start(self, loop: asyncio.AbstractEventLoop, loaded: asyncio.Future[None]) -> None:
        """Starts the thread; `loaded` is done when the model is there, or has the `BackendError`."""
        self._loop = loop
        self.death: asyncio.Future[None] = loop.create_future()
        self._loaded = loaded
        self._thread.start()

    def submit(self, sequence: Sequence) -> None:
        """Hands a request over; it joins between two steps."""
        self._inbox.put(sequence)

    def stop(self) -> None:
        """Asks the thread to end, which it does after the running step."""
        self._inbox.put(None)

    def join(self, timeout_seconds: float) -> None:
        """Waits for the thread's end; a model that still loads cannot be interrupted, and dies with the process."""
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        with torch.inference_mode():
            try:
                batch = self._make_batch()
            except BackendError as error:
                on_loop.settle(self._loop, self._loaded, error)
                return
            except Exception as error:  # noqa: BLE001 - the boundary: whatever a library raises while it loads becomes one line
                on_loop.settle(self._loop, self._loaded, engine_error(error))
                return
            on_loop.settle(self._loop, self._loaded, None)
            try:
                while self._take_in(batch):
                    self._step(batch)
                self._post(batch.fail(BackendError("the engine was stopped")))
            except Exception as error:  # the boundary: an engine that cannot go on says so, and its pod is started anew
                log.exception("engine.died", error_type=type(error).__name__)
                self._die(batch, engine_error(error))

    def _die(self, batch: Batch, error: BackendError) -> None:
        """Fails everything that runs or waits; what comes later is refused by whoever asks `death`."""
        rows = [*batch.unanswered, *self._waiting]
        while not self._inbox.empty():
            sequence = self._inbox.get()
            rows += [sequence] if sequence is not None else []
        on_loop.settle(self._loop, self.death, error)
        self._post([Drawn(row, error=error) for row in rows])

    def _take_in(self, batch: Batch) -> bool:
        """Lets new requests join as the scheduler says and rows are free, waiting while there is nothing to do; false when it shall end."""
        while True:
            while not self._inbox.empty():
                if not self._hear(self._inbox.get()):
                    return False
            self._join(batch)
            if batch.rows:
                return True
            with suppress(queue.Empty):
                seconds = self._scheduler.seconds_to_wait(len(self._waiting), self._waited_seconds)
                if not self._hear(self._inbox.get(timeout=seconds)):
                    return False

    def _hear(self, sequence: Sequence | None) -> bool:
        """Takes in a request, or the end, which those that wait are told."""
        if sequence is None:
            self._post([Drawn(one, error=BackendError("the engine was stopped")) for one in self._waiting])
            return False
        self._waiting.append(sequence)
        return True

    @property
    def _waited_seconds(self) -> float:
        return time.monotonic() - self._waiting[0].waits_since if self._waiting else 0.0

    def _join(self, batch: Batch) -> None:
        if any(one.is_cancelled for one in self._waiting):
            self._waiting = deque(one for one in self._waiting if not one.is_cancelled)
        for _ in range(self._scheduler.num_joining(len(self._waiting), len(batch.rows), self._waited_seconds)):
            if len(batch.rows) >= self._max_rows or not batch.has_room(self._waiting[0]):
                return
            batch.join(self._waiting.popleft())

    def _step(self, batch: Batch) -> None:
        start = time.perf_counter()
        try:
            drawn = batch.step()
        except torch.AcceleratorError:
            raise  # the device's context is broken: every later step would break by it, too
        except Exception as error:  # noqa: BLE001 - the boundary: a broken step fails its requests, not the engine
            log.error("engine.step_failed", error=type(error).__name__, message=str(error)[:500], rows=len(batch.rows))  # noqa: TRY400
            drawn = batch.fail(engine_error(error))
        self._publish(batch, len(drawn), time.perf_counter() - start)
        self._post(drawn)

    def _publish(self, batch: Batch, num_tokens: int, seconds: float) -> None:
        self._rate.step(num_tokens, seconds)
        self.load = Load(
            running=len(batch.rows),
            waiting=len(self._waiting),
            tokens_per_second=self._rate.per_second if batch.rows else 0.0,
            cache_usage=min(1.0, batch.num_cached_tokens / self._capacity()),
            gpu_memory_bytes=torch.cuda.memory_reserved() if torch.cuda.is_initialized() else 0,
        )

    def _post(self, drawn: list[Drawn]) -> None:
        if drawn:
            on_loop.call(self._loop, _deliver, drawn)


def _deliver(drawn: list[Drawn]) -> None:
    for one in drawn:
        one.deliver()
