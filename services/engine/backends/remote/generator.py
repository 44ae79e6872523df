"""The remote engine as the rest of the pod sees it: what `TokenGenerator` is for local ones, with bytes in place of text."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import Struct

from services.engine.backends.rate import Rate
from services.engine.backends.remote.contents import answer_text
from services.engine.backends.remote.upstream import Upstream
from services.engine.generation import BackendError, Load, ModelInfo, TokenEvent
from services.openai.errors import ApiError
from services.openai.upstream_errors import (
    UpstreamBusy,
    UpstreamError,
    UpstreamRefusal,
    UpstreamRefusedKey,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from services.engine.backends.remote.bodies import ForwardedBody
    from services.engine.backends.remote.frames import Piece
    from services.settings import EngineSettings

T = TypeVar("T")
log = get_logger()

_AGAIN_SECONDS = 2.0
# Where a request does not say how long its answer may be, admission has to assume something until it has seen answers.
_LIKELY_TOKENS = 512
_BYTES_PER_TOKEN = 4


class Forwarded(Struct, frozen=True):
    """A request that will be passed on: where to, and what admission and the records want to know.

    `num_prompt_tokens` is an estimate from the body's bytes, until the answer tells: only the upstream has the tokenizer.
    """

    request_id: str
    path: str
    body: bytes
    is_stream: bool
    longest: int | None
    """Tokens of the answer at most, if the request says."""
    deadline: float | None
    nothing: bytes = b""
    """What its pieces are joined to."""
    seed: None = None
    """The upstream draws."""

    @property
    def max_tokens(self) -> int:
        """Of the answer, as admission takes it."""
        return _LIKELY_TOKENS if self.longest is None else max(1, self.longest)

    @property
    def comes_whole(self) -> bool:
        """Whether nothing of its answer comes before all of it does."""
        return not self.is_stream

    @property
    def num_prompt_tokens(self) -> int:
        """About as many as the prompt has."""
        return len(self.body) // _BYTES_PER_TOKEN

    @property
    def num_bytes(self) -> int:
        """What it holds in memory."""
        return len(self.body)

    def text_of(self, answer: bytes) -> str:
        """The text of its answer, or of what came of it."""
        return answer_text(answer, is_stream=self.is_stream)

    def parameters(self) -> dict[str, Any]:
        """What a trace tells of it."""
        return {} if self.longest is None else {"max_tokens": self.longest}


class RemoteGenerator:
    """Passes requests on. `generate` brings the upstream's bytes as they come, and counts tokens by its frames."""

    is_remote = True

    def __init__(self, settings: EngineSettings) -> None:
        """Connects to nothing yet."""
        self._settings = settings
        self._upstream = Upstream(settings)
        self._running = 0
        self._rate, self._took_at = Rate(), time.monotonic()
        self._progress: Callable[[str], None] = lambda _: None
        self.info = ModelInfo(context_tokens=0, vocabulary_size=0, device="upstream", dtype="upstream")

    async def start(self, progress: Callable[[str], None]) -> None:
        """Waits for the upstream, however long, and looks for the model. Raises `BackendError` if it has another, or refuses the key."""
        self._progress = progress
        await self._upstream.open()
        models = await self._patiently(self._upstream.models)
        if models is not None and self._settings.model_name not in models:
            served = ", ".join(sorted(models)[:20]) or "none"
            raise BackendError(f"MODEL_NAME={self._settings.model_name}: the upstream does not serve it; it serves {served}")

    async def try_out(self, request_id: str, num_tokens: int) -> None:
        """One short answer; waits for the upstream while it is away or busy. Raises `BackendError` if it refuses every form of it."""
        await self._patiently(partial(self._greet, request_id, num_tokens))

    def prepare(self, request_id: str, path: str, body: bytes, asked: ForwardedBody, deadline: float | None) -> Forwarded:
        """What `generate` takes, for a body that names its model."""
        return Forwarded(request_id, path, body, bool(asked.stream), asked.longest, deadline)

    async def generate(self, prepared: Forwarded) -> AsyncIterator[TokenEvent]:
        """The upstream's answer; closing the iterator closes the connection. Raises `ApiError`."""
        self._running += 1
        answer = self._upstream.ask(prepared.request_id, prepared.path, prepared.body, is_stream=prepared.is_stream)
        try:
            async with aclosing(answer) as pieces:  # type: ignore[type-var]  # an async generator
                async for piece in pieces:
                    self._count(piece.num_tokens)
                    yield _event(piece)
                    if piece.finish_reason is not None:
                        return
            raise UpstreamError("The upstream ended its answer before it was whole")
        finally:
            self._running -= 1

    def load(self) -> Load:
        """What it has open, and how fast that comes."""
        return Load(running=self._running, tokens_per_second=self._rate.per_second if self._running else 0.0)

    async def died(self) -> str:
        """Never, and the pod stays ready: an upstream that goes away may come back, and a new pod, or another, would see nothing else.

        Each request is told by itself, in time: without a ready pod all that clients would hear is 503 no_healthy_engine.
        """
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def stop(self) -> None:
        """Closes all connections."""
        await self._upstream.close()

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Asks until the upstream answers: whoever starts it, or its tunnel, later shall not find pods that gave up."""
        while True:
            try:
                return await ask()
            except UpstreamRefusedKey as error:
                raise BackendError("UPSTREAM_API_KEY: the upstream refuses it") from error
            except (UpstreamUnreachable, UpstreamBusy, UpstreamError, UpstreamTimeout) as error:
                self._progress(f"waiting for UPSTREAM_URL: {error.message}")
                log.info("upstream.awaited", reason=error.message)
            except ApiError as error:
                raise BackendError(f"UPSTREAM_URL={self._settings.upstream_url}: {error.message}") from error
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _greet(self, request_id: str, num_tokens: int) -> None:
        """Some models know only the newer name of the limit, others no conversations."""
        chat: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello!"}]}
        forms = (
            ("/chat/completions", chat | {"max_tokens": num_tokens}),
            ("/chat/completions", chat | {"max_completion_tokens": num_tokens}),
            ("/completions", {"prompt": "Hello!", "max_tokens": num_tokens}),
        )
        refused: UpstreamRefusal | None = None
        for path, form in forms:
            body = msgspec.json.encode({"model": self._settings.model_name} | form)
            try:
                async with aclosing(self._upstream.ask(request_id, path, body, is_stream=False)) as pieces:  # type: ignore[type-var]  # likewise
                    async for _ in pieces:
                        return
            except UpstreamRefusal as error:
                refused = refused or error
        assert refused is not None
        raise refused

    def _count(self, num_tokens: int) -> None:
        now = time.monotonic()
        self._rate.step(max(0, num_tokens), now - self._took_at)
        self._took_at = now


def _event(piece: Piece) -> TokenEvent:
    event = TokenEvent(text=piece.data, num_tokens=piece.num_tokens, finish_reason=piece.finish_reason)
    if piece.usage is not None:
        event.num_prompt_tokens, event.num_cached_tokens = piece.usage.prompt_tokens, piece.usage.cached_tokens
    return event
