"""The transformers engine as the rest of the pod sees it: the event loop's side."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from services.engine.backends.transformers.forward import Forward
from services.engine.backends.transformers.loading import load
from services.engine.backends.transformers.sequence import Sequence
from services.engine.backends.transformers.tokenizer import ModelTokenizer
from services.engine.backends.transformers.worker import Worker
from services.engine.generation import BackendError, BackendUnavailable, TokenEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from services.engine.backends.transformers.loading import Loaded
    from services.engine.generation import GenerationRequest, Load, ModelInfo
    from services.settings import EngineSettings

_STOP_SECONDS = 5.0


class TransformersBackend:
    """A causal LM of the transformers library, batched step by step on one thread of its own."""

    def __init__(self, settings: EngineSettings) -> None:
        """Loads nothing yet."""
        self._settings = settings
        self._is_open = False
        self._loaded: Loaded
        self._progress: Callable[[str], None]
        self._worker = Worker(self._make_forward, settings.max_concurrent_requests, lambda: self._loaded.info.context_tokens)

    async def start(self, progress: Callable[[str], None]) -> ModelInfo:
        """Loads the model on the engine's thread. Raises `BackendError`."""
        loop = asyncio.get_running_loop()
        self._progress = lambda line: _call(loop, progress, line)
        loaded: asyncio.Future[None] = loop.create_future()
        self._worker.start(loop, loaded)
        await loaded
        self._is_open = True
        return self._loaded.info

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        """Events of one request; closing the iterator frees its row before the next step. Raises `BackendError`."""
        if not self._is_open:
            raise BackendError("the engine does not run")
        if self._worker.death.done():
            raise BackendUnavailable("the engine has died")
        self._refuse_impossible(request)
        sequence = Sequence(request, self._loaded.info.context_tokens)
        if sequence.num_new >= sequence.max_new:
            yield TokenEvent(finish_reason="length")
            return
        self._worker.submit(sequence)
        try:
            while True:
                event = await sequence.mailbox.get()
                yield event
                if event.finish_reason:
                    return
        finally:
            sequence.is_cancelled = True

    def load(self) -> Load:
        """As of the last step."""
        return self._worker.load

    async def died(self) -> str:
        """When the engine's thread broke, and not a step of it."""
        try:
            await asyncio.shield(self._worker.death)
        except BackendError as error:
            return str(error)
        raise AssertionError("an engine's death has a reason")

    async def stop(self) -> None:
        """Ends the thread; running requests fail."""
        self._is_open = False
        self._worker.stop()
        await asyncio.to_thread(self._worker.join, _STOP_SECONDS)

    def tokenizer(self) -> ModelTokenizer:
        """The model's tokenizer; to be called after `start`."""
        return ModelTokenizer(self._loaded.tokenizer, self._loaded.eos_token_ids)

    def _make_forward(self) -> Forward:
        self._loaded = load(self._settings, self._progress)
        forward = Forward(self._loaded.model, self._settings.max_concurrent_requests, self._loaded.info.context_tokens)
        forward.check()
        return forward

    def _refuse_impossible(self, request: GenerationRequest) -> None:
        """What would break the whole batch, or hang, is refused alone."""
        info = self._loaded.info
        if not 0 < len(request.prompt_token_ids) < info.context_tokens:
            raise BackendError(f"a prompt must have from 1 to {info.context_tokens - 1} tokens, got {len(request.prompt_token_ids)}")
        for ids in (request.prompt_token_ids, request.resume_token_ids, request.stop_token_ids):
            if ids and not (min(ids) >= 0 and max(ids) < info.vocabulary_size):
                raise BackendError(f"token ids must be from 0 to {info.vocabulary_size - 1}")


def _call(loop: asyncio.AbstractEventLoop, progress: Callable[[str], None], line: str) -> None:
    """Calls `progress` on the event loop, from the engine's thread."""
    loop.call_soon_threadsafe(progress, line)
