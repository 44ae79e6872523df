"""The core types of generation: what a backend is asked, what it answers. No HTTP, no torch.

A `Backend` knows token ids only. A `Generator` is what handlers call: text in, text events out; `TokenGenerator` makes one from the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FinishReason = Literal["stop", "length"]

WARM_UP_ID = "convoy-warm-up"
"""The request id of the pod's own first generation."""
PROBE_ID = "convoy-probe"
"""The request id of the pod's own question to an engine that brought no token for too long: does it work again?"""


class SamplingParams(Struct, frozen=True):
    """How the next token is drawn. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 are off.

    `seed` is always set: randomness is a function of (seed, position) alone.
    """

    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


class GenerationRequest(Struct, frozen=True):
    """One generation, in token ids.

    The backend ends after `max_tokens` new tokens ("length") or at a token of `stop_token_ids` ("stop"; that token is not sent on), which
    cannot be drawn before `min_tokens` new tokens. `deadline` is on the clock of `time.monotonic()`. `resume_token_ids` were already sent
    to the client: generation continues after them, and they count as new tokens.
    """

    request_id: str
    prompt_token_ids: Sequence[int]
    sampling: SamplingParams
    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    deadline: float | None = None
    resume_token_ids: Sequence[int] = ()


class TokenEvent(Struct):
    """New tokens of one request, in order; what was not read yet is merged into one event. The last one has `finish_reason`.

    `text` is filled by `TokenGenerator`; a remote engine's has the upstream's bytes. `num_tokens` counts the drawn tokens, the stop token
    included (it is part of the usage). `num_cached_tokens`, of the first event, counts the prompt's tokens that the engine knew from an
    earlier request. `num_prompt_tokens`, of a remote engine's last event, is what the upstream counted, if it told.
    """

    token_ids: list[int] = []
    text: Any = ""
    num_tokens: int = 0
    num_cached_tokens: int = 0
    num_prompt_tokens: int | None = None
    finish_reason: FinishReason | None = None


class Load(Struct, frozen=True):
    """What a backend is doing now. `cache_usage` is the used share of the KV cache, 0..1; `gpu_memory_bytes` is 0 without a GPU.

    `waiting` counts requests that it has and does not run yet.
    """

    running: int = 0
    waiting: int = 0
    tokens_per_second: float = 0.0
    cache_usage: float = 0.0
    gpu_memory_bytes: int = 0


class SamplingDefaults(Struct, frozen=True):
    """How a model's makers want it sampled where a request does not say."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


class ModelInfo(Struct, frozen=True):
    """What was loaded. `context_tokens` holds for prompt and answer together; `cache_tokens` for all requests', 0 where slots decide.

    `preempts`: when its cache is full the engine lets some of its requests wait, so it may be given what they are expected to need, and not
    only what they may come to.
    """

    context_tokens: int
    vocabulary_size: int
    device: str
    dtype: str
    sampling: SamplingDefaults = SamplingDefaults()
    cache_tokens: int = 0
    preempts: bool = False


class BackendError(Exception):
    """The engine broke on a request, or could not load; the message is fit for a log line."""


class BackendUnavailable(BackendError):
    """The engine takes no request now, and has not begun with this one: it may be tried elsewhere."""


def check_request(request: GenerationRequest, info: ModelInfo) -> None:
    """Raises `BackendError` for what would break a whole batch, or hang; who prepares requests refuses it before, in words for clients."""
    if not 0 < len(request.prompt_token_ids) < info.context_tokens:
        raise BackendError(f"a prompt must have from 1 to {info.context_tokens - 1} tokens, got {len(request.prompt_token_ids)}")
    for ids in (request.prompt_token_ids, request.resume_token_ids, request.stop_token_ids):
        if ids and not (min(ids) >= 0 and max(ids) < info.vocabulary_size):
            raise BackendError(f"token ids must be from 0 to {info.vocabulary_size - 1}")


class Backend(Protocol):
    """A generation engine. It never queues: admission gives it at most MAX_CONCURRENT_REQUESTS requests at once."""

    async def start(self, progress: Callable[[str], None]) -> ModelInfo:
        """Loads the model; `progress` takes a line for people. Raises `BackendError`."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        """Yields events until one has a finish reason; closing the iterator cancels the work within one step. Raises `BackendError`."""

    def load(self) -> Load:
        """What it is doing now."""

    async def died(self) -> str:
        """Returns, with the reason in one line, when the engine has ended without being told to: it will take no request any more."""

    async def stop(self) -> None:
        """Frees everything; running generations end with `BackendError`."""


class Tokenizer(Protocol):
    """Text to token ids and back. `encode*` may be slow for long texts: they are called off the event loop, from several threads."""

    eos_token_ids: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; a special token's text is plain text, and none is added but the model's start token."""

    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """Token ids of a conversation in the model's chat template, up to the assistant's turn; `ValueError` if it refuses."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens; an incomplete UTF-8 character at the end gives U+FFFD."""
