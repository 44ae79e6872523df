"""The transformers engine as the rest of the pod sees it: the event loop's side."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from msgspec import structs

from services.engine.backends import on_loop
from services.engine.backends.huggingface.tokenizer import ModelTokenizer
from services.engine.backends.transformers import scheduling
from services.engine.backends.transformers.batch import Batch
from services.engine.backends.transformers.forward import Forward
from services.engine.backends.transformers.loading import load
from services.engine.backends.transformers.sequence import Sequence
from services.engine.backends.transformers.worker import Worker
from services.engine.generation import BackendError, BackendUnavailable, TokenEvent, check_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from services.engine.backends.transformers.loading import Loaded
    from services.engine.generation import GenerationRequest, Load, ModelInfo
    from services.settings import EngineSettings

_STOP_SECONDS = 5.0
# For prompts that may come again, where KV_CACHE_BYTES does not say.
_PREFIX_BYTES = 64 << 20
_MIN_CONTEXT = 64


class TransformersBackend:
    """A causal LM of the transformers library, batched step by step on one thread of its own."""

    def __init__(self, settings: EngineSettings) -> None:
        """Loads nothing yet."""
        self._settings = settings
        self._is_open = False
        self._loaded: Loaded
        self._progress: Callable[[str], None]
        self._worker = Worker(self._make_batch, scheduling.create(settings), settings.slots, self._capacity)

    async def start(self, progress: Callable[[str], None]) -> ModelInfo:
        """Loads the model on the engine's thread. Raises `BackendError`."""
        loop = asyncio.get_running_loop()
        self._progress = lambda line: on_loop.call(loop, progress, line)
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
        check_request(request, self._loaded.info)
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

    def _make_batch(self) -> Batch:
        settings = self._settings
        self._loaded = load(settings, self._progress)
        # A quarter for prompts that may come again: what runs comes first, but what was read once is cheap to have.
        for_prefixes = settings.kv_cache_bytes // 4 if settings.kv_cache_bytes else _PREFIX_BYTES
        for_prefixes *= settings.enable_prefix_caching
        for_rows = settings.kv_cache_bytes - for_prefixes if settings.kv_cache_bytes else 0
        forward = Forward(self._loaded.model, settings.slots, self._loaded.info.context_tokens, for_rows)
        forward.check()
        if for_rows:
            self._bound_context(for_rows // forward.cache.bytes_per_token)
        return Batch(forward, for_prefixes)

    def _bound_context(self, num_tokens: int) -> None:
        """So many are all that the rows may have together; a request that comes to more has no room, even alone."""
        if num_tokens < _MIN_CONTEXT:
            raise BackendError(
                f"KV_CACHE_BYTES={self._settings.kv_cache_bytes}: that is room for {num_tokens} tokens; at least {_MIN_CONTEXT} are needed"
            )
        info = self._loaded.info
        bounded = structs.replace(info, context_tokens=min(num_tokens, info.context_tokens), cache_tokens=num_tokens)
        self._loaded = dataclasses.replace(self._loaded, info=bounded)

    def _capacity(self) -> int:
        """Tokens that the rows may have together."""
        info = self._loaded.info
        most = self._settings.slots * info.context_tokens
        return min(most, info.cache_tokens or most)
