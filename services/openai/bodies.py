"""The bodies of requests as types: what validates them is also what `/openapi.json` is made from.

A field whose `Meta` has `extra={"openai": type}` takes its neutral value only: another value of OpenAI's type is answered
`unsupported_parameter`, anything else `invalid_value` (see `explain.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from services.openai.messages import Message

COMPLETION_MAX_TOKENS = 16
MAX_STOP_CHARACTERS = 4096
_INT31 = 2**31 - 1
_INT63 = 2**63 - 1
_OWN = "what the model's generation_config.json says, else"

Penalty = Annotated[float, Meta(ge=-2, le=2)]
# Any whole number decodes: only who knows the prompt's length can say which is the greatest that is allowed (`TokenGenerator`).
Tokens = Annotated[int, Meta(extra_json_schema={"minimum": 1})]
StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]
TokenId = Annotated[int, Meta(ge=0, le=_INT31)]
TokenIds = Annotated[list[TokenId], Meta(min_length=1)]
MetadataKey = Annotated[str, Meta(max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]
Prompt = Annotated[str, Meta(min_length=1)] | Annotated[list[Annotated[str, Meta(min_length=1)] | TokenId | TokenIds], Meta(min_length=1)]
Messages = Annotated[list[Message], Meta(min_length=1, description="The conversation so far, oldest message first.")]


def _neutral(openai: Any, what: str = "") -> Meta:
    """Marks a parameter of which only the neutral value is carried out; `openai` is the type that OpenAI gives it."""
    return Meta(description=f"{what} Only its neutral value is supported.".strip(), extra={"openai": openai})


# msgspec has no `Literal[False]`: these fields are looked at after decoding (`requests.py`).
_FALSE_ONLY = Meta(
    description="Only false is supported.", extra={"openai": bool, "false_only": True}, extra_json_schema={"enum": [False, None]}
)
_WITHOUT_EFFECT = Meta(description="Accepted, without effect.")


class StreamOptions(Struct, forbid_unknown_fields=True, kw_only=True):
    """Options of a streamed answer; allowed only with `stream: true`."""

    include_usage: Annotated[bool | None, Meta(description="Send a last chunk with the token usage.")] = None
    include_obfuscation: Annotated[bool | None, _FALSE_ONLY] = None


class TextFormat(Struct, forbid_unknown_fields=True, kw_only=True):
    """The one supported format of answers: text."""

    type: Annotated[Literal["text"], Meta(extra={"openai": Literal["json_object", "json_schema"]})]


class GenerationBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """What every generating request takes."""

    model: Annotated[str | None, Meta(description="Name of the model; left out or null means the served one.")] = None
    max_tokens: Annotated[Tokens | None, Meta(description="Most tokens to generate.")] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None, Meta(description=f"Randomness of the choice of tokens: 0 is greedy, null is {_OWN} 1.")
    ] = None
    top_p: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        Meta(description=f"Draw among the likeliest tokens that together have this probability; null is {_OWN} 1."),
    ] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=-1, le=_INT31)] | None,
        Meta(description=f"Extension: draw among this many likeliest tokens; -1 or 0 is off; null is {_OWN} off."),
    ] = None
    min_p: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(description=f"Extension: drop tokens below this share of the top probability; 0 is off, null is {_OWN} off."),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=-_INT63 - 1, le=_INT63)] | None, Meta(description="The same seed and request give the same answer.")
    ] = None
    stop: Annotated[
        Annotated[str, Meta(max_length=MAX_STOP_CHARACTERS)] | Annotated[list[StopText], Meta(max_length=4)] | None,
        Meta(description="Up to 4 texts that end the answer, which does not contain them; an empty one means none."),
    ] = None
    min_tokens: Annotated[
        Annotated[int, Meta(ge=0, le=_INT31)] | None, Meta(description="Extension: tokens to generate before the model may stop by itself.")
    ] = None
    ignore_eos: Annotated[bool | None, Meta(description="Extension: go on past the model's own end, up to max_tokens.")] = None
    stream: Annotated[bool | None, Meta(description="Send the answer token by token, as server-sent events.")] = None
    stream_options: StreamOptions | None = None
    n: Annotated[Literal[1] | None, _neutral(Annotated[int, Meta(ge=1, le=128)])] = None
    frequency_penalty: Annotated[Annotated[float, Meta(ge=0, le=0)] | None, _neutral(Penalty)] = None
    presence_penalty: Annotated[Annotated[float, Meta(ge=0, le=0)] | None, _neutral(Penalty)] = None
    logit_bias: Annotated[Annotated[dict[str, float], Meta(max_length=0)] | None, _neutral(dict[str, float])] = None
    user: Annotated[str | None, _WITHOUT_EFFECT] = None
    safety_identifier: Annotated[str | None, _WITHOUT_EFFECT] = None
    prompt_cache_key: Annotated[str | None, _WITHOUT_EFFECT] = None
    metadata: Annotated[Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=16)] | None, _WITHOUT_EFFECT] = None
    service_tier: Annotated[Literal["auto", "default"] | None, _neutral(Literal["flex", "scale", "priority", "fast"])] = None
    store: Annotated[bool | None, _FALSE_ONLY] = None


class _ChatBody(GenerationBody, kw_only=True):
    max_completion_tokens: Annotated[Tokens | None, Meta(description="Most tokens to generate, by its newer name.")] = None
    logprobs: Annotated[bool | None, _FALSE_ONLY] = None
    top_logprobs: Annotated[Literal[0] | None, _neutral(Annotated[int, Meta(ge=0, le=20)])] = None
    response_format: Annotated[TextFormat | None, Meta(description="Only text is supported.")] = None
    tools: Annotated[Annotated[list[Any], Meta(max_length=0)] | None, _neutral(list[dict[str, Any]])] = None
    tool_choice: Annotated[Literal["none", "auto"] | None, _neutral(Literal["required"] | dict[str, Any])] = None
    parallel_tool_calls: Annotated[bool | None, _WITHOUT_EFFECT] = None
    functions: Annotated[Annotated[list[Any], Meta(max_length=0)] | None, _neutral(list[dict[str, Any]])] = None
    function_call: Annotated[Literal["none", "auto"] | None, _neutral(dict[str, Any])] = None
    modalities: Annotated[
        Annotated[list[Literal["text"]], Meta(min_length=1, max_length=1)] | None, _neutral(list[Literal["text", "audio"]])
    ] = None
    audio: Annotated[None, _neutral(dict[str, Any])] = None
    moderation: Annotated[None, _neutral(dict[str, Any])] = None
    prediction: Annotated[None, _neutral(dict[str, Any])] = None
    prompt_cache_options: Annotated[None, _neutral(dict[str, Any])] = None
    prompt_cache_retention: Annotated[None, _neutral(Literal["in_memory", "24h"])] = None
    reasoning_effort: Annotated[Literal["none"] | None, _neutral(Literal["minimal", "low", "medium", "high", "xhigh", "max"])] = None
    verbosity: Annotated[Literal["medium"] | None, _neutral(Literal["low", "high"])] = None
    web_search_options: Annotated[None, _neutral(dict[str, Any])] = None


class ChatCompletionBody(_ChatBody, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: Messages


class ShortChatBody(_ChatBody, kw_only=True):
    """Body of POST /chat: one message instead of a conversation; the other parameters are those of chat completions."""

    message: Annotated[str, Meta(description="What the user says.")]
    system: Annotated[str | None, Meta(description="Instructions for the model.")] = None


class CompletionBody(GenerationBody, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: Annotated[Prompt, Meta(description="The text to continue, or its token ids; also as a list of one.")]
    best_of: Annotated[Literal[1] | None, _neutral(Annotated[int, Meta(ge=1, le=20)])] = None
    echo: Annotated[bool | None, _FALSE_ONLY] = None
    logprobs: Annotated[None, _neutral(Annotated[int, Meta(ge=0, le=5)])] = None
    suffix: Annotated[Annotated[str, Meta(max_length=0)] | None, _neutral(str)] = None
