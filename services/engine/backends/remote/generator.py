"""The remote engine as the rest of the pod sees it: what `TokenGenerator` is for local ones, with bytes in place of text."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from services.engine.backends.remote.upstream import Upstream, Whole
from services.engine.generation import BackendError, Load, ModelInfo, TokenEvent
from services.openai.errors import ApiError, EngineError
from services.openai.upstream_errors import UpstreamRefusedKey, UpstreamUnreachable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from services.engine.backends.remote.bodies import ForwardedBody
    from services.settings import EngineSettings

_AGAIN_SECONDS = 2.0
# Where a request does not say how long its answer may be, admission has to assume something until it has seen answers.
_LIKELY_TOKENS = 512
_BYTES_PER_TOKEN = 4


class Forwarded(Struct, frozen=True):
    """A request that will be passed on: where to, and what admission and the records want to know.

    `num_prompt_tokens` is an estimate from the body's bytes: only the upstream has the tokenizer.
    """

    request_id: str
    path: str
    body: bytes
    is_stream: bool
    max_tokens: int
    deadline: float | None
    nothing: bytes = b""
    """What its pieces are joined to."""
    seed: None = None
    """The upstream draws."""

    @property
    def num_prompt_tokens(self) -> int:
        """About as many as the prompt has."""
        return len(self.body) // _BYTES_PER_TOKEN

    @property
    def num_bytes(self) -> int:
        """What it holds in memory."""
        return len(self.body)

    def parameters(self) -> dict[str, Any]:
        """What a trace tells of it."""
        return {"max_tokens": self.max_tokens, "stream": self.is_stream}


class RemoteGenerator:
    """Passes requests on. `generate` brings the upstream's bytes as they come, and counts tokens by its frames."""

    is_remote = True

    def __init__(self, settings: EngineSettings) -> None:
        """Connects to nothing yet."""
        self._settings = settings
        self._upstream = Upstream(settings)
        self._running = 0
        self.info = ModelInfo(context_tokens=0, vocabulary_size=0, device="upstream", dtype="upstream")

    async def start(self, progress: Callable[[str], None]) -> None:
        """Waits for the upstream, however long, and looks for the model. Raises `BackendError` if it has another, or refuses the key."""
        await self._upstream.open()
        while isinstance(models := await self._models(), UpstreamUnreachable):
            progress(f"waiting for UPSTREAM_URL={self._settings.upstream_url}: {models.message}")
            await asyncio.sleep(_AGAIN_SECONDS)
        if models is not None and self._settings.model_name not in models:
            served = ", ".join(sorted(models)[:20]) or "none"
            raise BackendError(f"MODEL_NAME={self._settings.model_name}: the upstream does not serve it; it serves {served}")

    async def _models(self) -> set[str] | UpstreamUnreachable | None:
        try:
            return await self._upstream.models()
        except UpstreamUnreachable as error:
            return error
        except UpstreamRefusedKey as error:
            raise BackendError("UPSTREAM_API_KEY: the upstream refuses it") from error
        except ApiError as error:
            raise BackendError(f"UPSTREAM_URL={self._settings.upstream_url}: {error.message}") from error

    async def try_out(self, request_id: str, num_tokens: int) -> None:
        """One short answer. Raises `BackendError`."""
        try:
            await self._upstream.greet(request_id, self._settings.model_name, num_tokens)
        except ApiError as error:
            raise BackendError(error.message) from error

    def prepare(self, request_id: str, path: str, body: bytes, asked: ForwardedBody, deadline: float | None) -> Forwarded:
        """What `generate` takes, for a body that names its model."""
        return Forwarded(request_id, path, body, bool(asked.stream), asked.longest or _LIKELY_TOKENS, deadline)

    async def generate(self, prepared: Forwarded) -> AsyncIterator[TokenEvent]:
        """The upstream's answer; closing the iterator closes the connection. Raises `ApiError`."""
        self._running += 1
        try:
            async for piece in self._upstream.ask(prepared.request_id, prepared.path, prepared.body, is_stream=prepared.is_stream):
                is_last = isinstance(piece, Whole) or piece.is_last
                yield TokenEvent(text=piece.data, num_tokens=piece.num_tokens, finish_reason="stop" if is_last else None)
                if is_last:
                    return
            raise EngineError("The upstream ended the answer before it was whole")
        finally:
            self._running -= 1

    def load(self) -> Load:
        """What it has open."""
        return Load(running=self._running)

    async def died(self) -> str:
        """Never: an upstream that goes away may come back, and nothing here would be better for a new start."""
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def stop(self) -> None:
        """Closes all connections."""
        await self._upstream.close()
