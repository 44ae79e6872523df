"""Answers in JSON: every key that OpenAI's clients rely on, also where its value is null.

The types are public because `/openapi.json` is made from them; the functions give encoded bytes.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.openai.errors import ApiError

FinishReason = Literal["stop", "length"]
_ENCODER = msgspec.json.Encoder()


class PromptTokensDetails(Struct, frozen=True):
    """Parts of the prompt's tokens."""

    cached_tokens: int = 0


class CompletionTokensDetails(Struct, frozen=True):
    """Parts of the answer's tokens."""

    reasoning_tokens: int = 0


class Usage(Struct, frozen=True):
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()


class AnswerMessage(Struct, frozen=True, kw_only=True):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    annotations: tuple[Any, ...] = ()


class ChatChoice(Struct, frozen=True, kw_only=True):
    """The one answer of a chat completion."""

    index: Literal[0] = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/chat/completions and /chat."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: Annotated[int, Meta(description="Unix time in seconds.")]
    model: str
    choices: tuple[ChatChoice]
    usage: Usage
    system_fingerprint: str | None = None


class TextChoice(Struct, frozen=True, kw_only=True):
    """The one answer of a completion; in a chunk of a stream `finish_reason` is null until the last one."""

    text: str
    index: Literal[0] = 0
    logprobs: None = None
    finish_reason: FinishReason | None


class Completion(Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: Annotated[int, Meta(description="Unix time in seconds.")]
    model: str
    choices: tuple[TextChoice]
    usage: Usage
    system_fingerprint: str | None = None


class Model(Struct, frozen=True, kw_only=True):
    """Answer of GET /v1/models/{id}."""

    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Meta(description="Unix time in seconds.")]
    owned_by: str = "convoy"


class ModelList(Struct, frozen=True, kw_only=True):
    """Answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


def new_id(prefix: Literal["chatcmpl", "cmpl"]) -> str:
    """An id for one answer, such as `chatcmpl-…`."""
    return f"{prefix}-{secrets.token_hex(16)}"


def count_usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> Usage:
    """The usage of a request with these tokens; `cached_tokens` of the prompt were known from earlier ones."""
    return Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens, PromptTokensDetails(cached_tokens))


def chat_completion(  # noqa: PLR0913 - the fields of the answer
    *,
    id: str,  # noqa: A002 - OpenAI's name
    created: int,
    model: str,
    text: str,
    finish_reason: FinishReason,
    usage: Usage,
    system_fingerprint: str | None = None,
) -> bytes:
    """The JSON of a whole chat completion; `created` in Unix seconds."""
    choice = ChatChoice(message=AnswerMessage(content=text), finish_reason=finish_reason)
    return _ENCODER.encode(
        ChatCompletion(id=id, created=created, model=model, choices=(choice,), usage=usage, system_fingerprint=system_fingerprint)
    )


def text_completion(  # noqa: PLR0913 - the fields of the answer
    *,
    id: str,  # noqa: A002 - OpenAI's name
    created: int,
    model: str,
    text: str,
    finish_reason: FinishReason,
    usage: Usage,
    system_fingerprint: str | None = None,
) -> bytes:
    """The JSON of a whole text completion; `created` in Unix seconds."""
    choice = TextChoice(text=text, finish_reason=finish_reason)
    return _ENCODER.encode(
        Completion(id=id, created=created, model=model, choices=(choice,), usage=usage, system_fingerprint=system_fingerprint)
    )


def model_object(id: str, created: int) -> bytes:  # noqa: A002 - OpenAI's name
    """The JSON of one model; `created` in Unix seconds."""
    return _ENCODER.encode(Model(id=id, created=created))


def model_list(models: Iterable[tuple[str, int]]) -> bytes:
    """The JSON of the list of models, each given as id and creation time in Unix seconds."""
    return _ENCODER.encode(ModelList(data=[Model(id=name, created=created) for name, created in models]))


def error_body(error: ApiError) -> bytes:
    """The JSON of an error."""
    return _ENCODER.encode(error.body())
