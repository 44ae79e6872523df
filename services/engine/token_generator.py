"""Text in, text events out, over a backend that knows token ids only: template, tokenizer, detokenizer, stop strings.

Shared by all local engines. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import secrets
from array import array
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct, structs

from services.engine.generation import GenerationRequest, SamplingParams, TokenEvent
from services.engine.text import TextOf
from services.openai.describe import shown
from services.openai.errors import ContextLengthExceeded, InvalidValue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from services.engine.generation import Backend, Load, ModelInfo, Tokenizer
    from services.openai.requests import ChatRequest, CompletionRequest, GenerationOptions

T = TypeVar("T")

# Of this a template and a tokenizer make tokens in half a millisecond. A thread would cost a fifth of that by itself, and while the engine
# computes it waits up to 5 ms (sys.getswitchinterval) for its turn, which every first token would be late by.
_SHORT_BYTES = 2048


class Prepared(Struct, frozen=True):
    """A request that was checked against the model: what will be generated, and what text handling it wants."""

    request: GenerationRequest
    stop: tuple[str, ...]
    continues_prompt: bool = False
    """Whether the answer's text goes on from the prompt's: some tokenizers drop a space where a text begins."""
    nothing: str = ""
    """What its pieces are joined to."""
    comes_whole = False
    """Whether nothing of its answer comes before all of it does."""

    @property
    def request_id(self) -> str:
        """By which it is known."""
        return self.request.request_id

    @property
    def max_tokens(self) -> int:
        """Of the answer."""
        return self.request.max_tokens

    @property
    def deadline(self) -> float | None:
        """On the clock of `time.monotonic()`."""
        return self.request.deadline

    @property
    def seed(self) -> int | None:
        """With which it can be asked for again."""
        return self.request.sampling.seed

    def text_of(self, answer: str) -> str:
        """The text of its answer: here, the answer."""
        return answer

    def parameters(self) -> dict[str, Any]:
        """What holds for it, whether it said so or left it out; what is off is left out."""
        sampling = self.request.sampling
        parameters: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }
        if sampling.top_k:
            parameters["top_k"] = sampling.top_k
        if self.stop:
            parameters["stop_sequences"] = self.stop
        return parameters

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def num_bytes(self) -> int:
        """What it holds in memory, nearly: its token ids."""
        ids = self.request.prompt_token_ids
        return ids.itemsize * len(ids) if isinstance(ids, array) else 8 * len(ids)


class TokenGenerator:
    """What handlers call. `prepare_*` may refuse a request; `generate` carries a prepared one out."""

    is_remote = False

    def __init__(self, backend: Backend, load_tokenizer: Callable[[], Tokenizer]) -> None:
        """`load_tokenizer` is called once, off the event loop, after the backend has loaded its model."""
        self.backend = backend
        """What it generates with, in token ids."""
        self._load_tokenizer = load_tokenizer
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tokenizer")
        self.tokenizer: Tokenizer
        self.info: ModelInfo

    async def start(self, progress: Callable[[str], None]) -> None:
        """Loads model and tokenizer. Raises `BackendError`."""
        self.info = await self.backend.start(progress)
        self.tokenizer = await self._off_loop(self._load_tokenizer)

    async def try_out(self, request_id: str, num_tokens: int) -> None:
        """One short generation of our own, through all that a client's goes through. Raises `BackendError`."""
        message = "Hello!"
        try:
            token_ids = await self._off_loop(self.tokenizer.encode_chat, [{"role": "user", "content": message}])
        except ValueError:  # a model without a chat template, or with one that wants more than a greeting
            token_ids = await self._off_loop(self.tokenizer.encode, message)
        context = self.info.context_tokens
        token_ids = token_ids[: max(1, context - num_tokens)]
        own = self.info.sampling
        sampling = SamplingParams(seed=0, temperature=own.temperature, top_k=own.top_k, top_p=own.top_p, min_p=own.min_p)
        request = GenerationRequest(request_id, token_ids, sampling, max_tokens=min(num_tokens, context - len(token_ids)))
        async with aclosing(self.generate(Prepared(request, ()))) as events:  # type: ignore[type-var]  # an async generator
            async for _ in events:
                pass

    def load(self) -> Load:
        """What the backend is doing now."""
        return self.backend.load()

    async def died(self) -> str:
        """Returns, with the reason, when the engine has ended without being told to."""
        return await self.backend.died()

    async def stop(self) -> None:
        """Frees everything."""
        await self.backend.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def prepare_chat(self, request_id: str, chat: ChatRequest, num_bytes: int, deadline: float | None = None) -> Prepared:
        """Templates, tokenizes and checks a conversation that came in a body of `num_bytes`. Raises `BadRequest`."""
        try:
            token_ids = await self._encode(num_bytes, self.tokenizer.encode_chat, chat.messages)
        except ValueError as error:
            raise InvalidValue(f"messages: {error}", param="messages") from error
        return self._prepared(request_id, token_ids, chat.options, "messages", deadline)

    async def prepare_completion(
        self, request_id: str, completion: CompletionRequest, num_bytes: int, deadline: float | None = None
    ) -> Prepared:
        """Tokenizes and checks a bare prompt that came in a body of `num_bytes`. Raises `BadRequest`."""
        if isinstance(completion.prompt, str):
            token_ids = await self._encode(num_bytes, self.tokenizer.encode, completion.prompt)
        else:
            largest = max(completion.prompt, default=0)
            if largest >= self.info.vocabulary_size:
                raise InvalidValue(f"prompt: token ids must be below {self.info.vocabulary_size}, got {largest}", param="prompt")
            token_ids = _packed(completion.prompt)
        return structs.replace(self._prepared(request_id, token_ids, completion.options, "prompt", deadline), continues_prompt=True)

    async def generate(self, prepared: Prepared) -> AsyncIterator[TokenEvent]:
        """Events with text, until one has a finish reason; closing the iterator cancels the work. Raises `BackendError`."""
        before = prepared.request.prompt_token_ids if prepared.continues_prompt else ()
        text_of = TextOf(self.tokenizer, prepared.stop, prepared.request.min_tokens, before)
        for token in prepared.request.resume_token_ids:  # the client has their text; what was held back of it is still to come
            text_of.take([token], 1, is_last=False)
        async with aclosing(self.backend.generate(prepared.request)) as events:  # type: ignore[type-var]  # backends write async generators
            async for event in events:
                event.text, num_until_stop = text_of.take(event.token_ids, event.num_tokens, is_last=event.finish_reason is not None)
                if num_until_stop is not None:
                    event.finish_reason, event.num_tokens = "stop", num_until_stop
                yield event
                if num_until_stop is not None:
                    return

    def _prepared(
        self, request_id: str, token_ids: Sequence[int], options: GenerationOptions, param: str, deadline: float | None
    ) -> Prepared:
        max_tokens = self._max_tokens(len(token_ids), options, param)
        request = GenerationRequest(
            request_id=request_id,
            prompt_token_ids=token_ids,
            sampling=self._sampling(options),
            max_tokens=max_tokens,
            min_tokens=options.min_tokens,
            stop_token_ids=frozenset() if options.ignore_eos else self.tokenizer.eos_token_ids,
            deadline=deadline,
        )
        return Prepared(request, options.stop)

    def _sampling(self, options: GenerationOptions) -> SamplingParams:
        own = self.info.sampling
        return SamplingParams(
            seed=secrets.randbits(63) if options.seed is None else options.seed,
            temperature=own.temperature if options.temperature is None else options.temperature,
            top_k=own.top_k if options.top_k is None else options.top_k,
            top_p=own.top_p if options.top_p is None else options.top_p,
            min_p=own.min_p if options.min_p is None else options.min_p,
        )

    def _max_tokens(self, num_prompt_tokens: int, options: GenerationOptions, param: str) -> int:
        """How many new tokens may come: what was asked for, or all that the context leaves."""
        if num_prompt_tokens == 0:
            raise InvalidValue(f"{param} must hold at least one token", param=param)
        context = self.info.context_tokens
        left = context - num_prompt_tokens
        if left < 1:
            raise ContextLengthExceeded(
                f"This model's context is {context} tokens; the prompt has {num_prompt_tokens} and must leave room for at least one more",
                param=param,
            )
        name = options.max_tokens_param
        if options.max_tokens is not None and not 1 <= options.max_tokens <= left:
            why = f"the context is {context} tokens and the prompt has {num_prompt_tokens}"
            raise InvalidValue(f"{name} must be from 1 to {left} ({why}), got {shown(options.max_tokens)}.", param=name)
        if options.min_tokens > left:
            raise InvalidValue(f"min_tokens must be at most {left}: the context is {context} tokens", param="min_tokens")
        return left if options.max_tokens is None else options.max_tokens

    async def _encode(self, num_bytes: int, function: Callable[..., list[int]], prompt: object) -> array[int]:
        """Short prompts at once, the others on a thread: there they would delay everybody's tokens."""
        if num_bytes <= _SHORT_BYTES:
            return _packed(function(prompt))
        return await self._off_loop(lambda: _packed(function(prompt)))

    async def _off_loop(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


def _packed(token_ids: Sequence[int]) -> array[int]:
    """Token ids in 4 bytes each (8 for the fake engine's) instead of 36: a request may hold them for long."""
    return array("i" if max(token_ids, default=0) < 1 << 31 else "q", token_ids)
