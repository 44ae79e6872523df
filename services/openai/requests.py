"""Bodies of requests to what handlers use; every failure is an `ApiError` that names the parameter and what is allowed.

A body is decoded and validated in one pass by its type (`bodies.py`); only a refused one is read again to find the reason in words
(`explain.py`). Of a key that comes twice the last one counts, but each must be valid.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from services.openai import explain
from services.openai.bodies import COMPLETION_MAX_TOKENS, ChatCompletionBody, CompletionBody, ShortChatBody
from services.openai.errors import InvalidJson, InvalidValue, MissingParameter, UnsupportedParameter
from services.openai.messages import AssistantMessage, TemplateMessage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.openai.bodies import GenerationBody

Body = TypeVar("Body", bound=Struct)


class _ChatForm(Struct):
    """Which of the two forms a body of POST /chat has."""

    message: Raw | UnsetType = UNSET
    messages: Raw | UnsetType = UNSET


_CHAT = msgspec.json.Decoder(ChatCompletionBody)
_CHAT_FORM = msgspec.json.Decoder(_ChatForm)
_SHORT_CHAT = msgspec.json.Decoder(ShortChatBody)
_COMPLETION = msgspec.json.Decoder(CompletionBody)
# Plain JSON for `explain`; a float beyond the range becomes infinite instead of ending the reading.
_PLAIN = msgspec.json.Decoder(float_hook=float)
_NOT_A_NUMBER = re.compile(rb"-?(NaN|Infinity)")
_UTF8_BOM, _UTF16_BOMS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


class GenerationOptions(Struct, frozen=True, kw_only=True):
    """How to generate and send an answer; `max_tokens` None is what the context leaves, `seed` None is to be drawn.

    `max_tokens` may be any whole number: what the context leaves is not known here.

    `max_tokens_param` is the name by which the client set it. `temperature`, `top_p`, `top_k` and `min_p` None are the model's own;
    `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 are off.
    `stop` holds 0 to 4 non-empty texts.
    """

    max_tokens: int | None
    max_tokens_param: str
    min_tokens: int
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    stop: tuple[str, ...]
    ignore_eos: bool
    stream: bool
    include_usage: bool


class ChatRequest(Struct, frozen=True, kw_only=True):
    """A conversation to continue; `messages` are ready for a chat template, `model` None is the served one."""

    model: str | None
    messages: list[TemplateMessage]
    options: GenerationOptions


class CompletionRequest(Struct, frozen=True, kw_only=True):
    """A text, or token ids (not yet checked against a vocabulary), to continue; `model` None is the served one."""

    model: str | None
    prompt: str | list[int]
    options: GenerationOptions


def decode_chat(body: bytes) -> ChatRequest:
    """The body of POST /v1/chat/completions; raises `BadRequest`."""
    request = _decode(_CHAT, body)
    for index, message in enumerate(request.messages):
        if type(message) is AssistantMessage and message.is_empty():
            path = f"messages[{index}].content"
            raise MissingParameter(f"{path} is required: a string or a list of text parts, unless tool_calls are given.", param=path)
    messages = [message.plain() for message in request.messages]
    return ChatRequest(model=request.model, messages=messages, options=_options(request, _chat_max_tokens(request)))


def decode_short_chat(body: bytes) -> ChatRequest:
    """The body of POST /chat: `message` with an optional `system`, or the body of chat completions; raises `BadRequest`."""
    form = _decode(_CHAT_FORM, body)
    if form.messages is not UNSET:
        if form.message is not UNSET:
            raise InvalidValue("message and messages must not be given together.", param="messages")
        return decode_chat(body)
    request = _decode(_SHORT_CHAT, body)
    system = [] if request.system is None else [{"role": "system", "content": request.system}]
    messages = [*system, {"role": "user", "content": request.message}]
    return ChatRequest(model=request.model, messages=messages, options=_options(request, _chat_max_tokens(request)))


def decode_completion(body: bytes) -> CompletionRequest:
    """The body of POST /v1/completions; raises `BadRequest`."""
    request = _decode(_COMPLETION, body)
    if request.echo:
        raise explain.true_is_unsupported("echo")
    max_tokens = COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    return CompletionRequest(model=request.model, prompt=_prompt(request.prompt), options=_options(request, max_tokens))


def _decode(decoder: msgspec.json.Decoder[Body], body: bytes) -> Body:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        problem = explain.problem_of(_plain(body, error), decoder.type, error)
        # No problem: the refused value was one of several of the same key, and the last one is good.
        raise problem or _out_of_words(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(body, error) from None


def _plain(body: bytes, refused: msgspec.ValidationError) -> object:
    """The body as plain JSON; `refused` is why its type did not take it."""
    try:
        return _PLAIN.decode(body)
    except msgspec.ValidationError:  # a whole number of thousands of digits, which even plain JSON does not take
        raise _out_of_words(refused) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(body, error) from None


def _out_of_words(error: msgspec.ValidationError) -> InvalidValue:
    """The words of msgspec itself, for what `explain` cannot see."""
    path = ".".join(explain.place_of(error))
    return InvalidValue(f"{path or 'The body'}: {str(error).partition(' - at ')[0]}.", param=path or None)


def _not_json(body: bytes, error: Exception) -> InvalidJson:
    if not body.strip():
        return InvalidJson("The body is empty; it must be a JSON object.")
    if body.startswith(_UTF8_BOM):
        return InvalidJson("The body starts with a byte order mark; it must be JSON in UTF-8 without one.")
    if isinstance(error, UnicodeDecodeError) or body.startswith(_UTF16_BOMS):
        return InvalidJson("The body is not UTF-8; it must be JSON in UTF-8.")
    if isinstance(error, RecursionError):
        return InvalidJson("The body nests lists or objects deeper than this server reads.")
    reason = str(error).removeprefix("JSON is malformed: ")
    if "surrogate" in reason or (reason == "Input data was truncated" and re.search(rb"\\u[dD][89a-fA-F]", body)):
        reason = r"it ends too early, or holds half of a surrogate pair (such as \ud800 alone), which is no Unicode character"
    elif re.search(r"invalid character", reason) and (number := _NOT_A_NUMBER.match(body, int(re.sub(r"\D", "", reason)))):
        reason = f"{number[0].decode()} is not a JSON number"
    return InvalidJson(f"The body is not valid JSON: {reason}.")


def _chat_max_tokens(body: ChatCompletionBody | ShortChatBody) -> int | None:
    """The one limit of both names, None if neither is given; and the checks that only chat bodies need."""
    if body.logprobs:
        raise explain.true_is_unsupported("logprobs")
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        message = f"max_completion_tokens must equal max_tokens ({old}) where both are given, got {new}."
        raise InvalidValue(message, param="max_completion_tokens")
    return old if new is None else new


def _options(body: GenerationBody, max_tokens: int | None) -> GenerationOptions:
    if body.store:
        raise explain.true_is_unsupported("store")
    min_tokens = body.min_tokens or 0
    if max_tokens is not None and min_tokens > max_tokens > 0:
        raise InvalidValue(f"min_tokens must not be above max_tokens ({max_tokens}), got {min_tokens}.", param="min_tokens")
    return GenerationOptions(
        max_tokens=max_tokens,
        max_tokens_param="max_tokens" if getattr(body, "max_completion_tokens", None) is None else "max_completion_tokens",
        min_tokens=min_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k is None else max(body.top_k, 0),
        min_p=body.min_p,
        seed=body.seed,
        stop=_stop(body.stop),
        ignore_eos=bool(body.ignore_eos),
        stream=bool(body.stream),
        include_usage=_include_usage(body),
    )


def _include_usage(body: GenerationBody) -> bool:
    options = body.stream_options
    if options is None:
        return False
    if options.include_obfuscation:
        raise explain.true_is_unsupported("stream_options.include_obfuscation")
    if not body.stream:
        raise InvalidValue("stream_options must be left out or null, unless stream is true.", param="stream_options")
    return bool(options.include_usage)


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    if isinstance(stop, str):
        return (stop,) if stop else ()
    return tuple(stop or ())


def _prompt(prompt: str | Sequence[str | int | list[int]]) -> str | list[int]:
    """The one prompt: a text or token ids, given plainly or as a list of one."""
    if isinstance(prompt, str):
        return prompt
    first = prompt[0]
    if len(set(map(type, prompt))) > 1:
        path = next(f"prompt[{index}]" for index, item in enumerate(prompt) if type(item) is not type(first))
        raise InvalidValue(f"{path} must be of the type of prompt[0]: a prompt is one string, or token ids only.", param=path)
    if isinstance(first, int):
        return cast("list[int]", prompt)
    if len(prompt) > 1:
        raise UnsupportedParameter(f"prompt: {len(prompt)} prompts at once are not supported by this server; send one.", param="prompt")
    return first
