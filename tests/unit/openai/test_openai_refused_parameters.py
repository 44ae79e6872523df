"""Which parameters are refused: OpenAI's that this server cannot carry out, misspelt ones, and required ones that are missing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from services.openai.errors import ApiError, MissingParameter, UnknownParameter, UnsupportedParameter
from services.openai.requests import decode_chat, decode_completion
from tests.unit.openai.bad_bodies import MINIMAL, refused, with_field

UNSUPPORTED: list[tuple[str, Any, str]] = [
    ("n", 2, "n"), ("logprobs", True, "logprobs"), ("top_logprobs", 5, "top_logprobs"), ("presence_penalty", 0.1, "presence_penalty"),
    ("frequency_penalty", -2, "frequency_penalty"), ("logit_bias", {"1": 5}, "logit_bias"), ("tools", [{"type": "function"}], "tools"),
    ("tool_choice", "required", "tool_choice"), ("tool_choice", {"type": "function"}, "tool_choice"), ("functions", [{}], "functions"),
    ("function_call", {"name": "f"}, "function_call"), ("response_format", {"type": "json_object"}, "response_format.type"),
    ("response_format", {"type": "json_schema", "json_schema": {}}, "response_format.type"),
    ("modalities", ["text", "audio"], "modalities"),
    ("audio", {"voice": "v"}, "audio"), ("moderation", {"model": "m"}, "moderation"), ("prediction", {"type": "content"}, "prediction"),
    ("prompt_cache_options", {}, "prompt_cache_options"), ("prompt_cache_retention", "24h", "prompt_cache_retention"),
    ("reasoning_effort", "low", "reasoning_effort"), ("verbosity", "high", "verbosity"), ("web_search_options", {}, "web_search_options"),
    ("service_tier", "flex", "service_tier"), ("store", True, "store"), ("messages", [{"role": "function"}], "messages[0].role"),
    ("stream_options", {"include_obfuscation": True}, "stream_options.include_obfuscation"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "param"), UNSUPPORTED)
def test_what_openai_can_and_this_server_cannot_is_unsupported(field: str, value: object, param: str) -> None:
    """A parameter that would change the answer is refused, not dropped; the message names the way out."""
    error = refused(with_field(field, value))
    assert (type(error), error.param) == (UnsupportedParameter, param)
    assert error.message.startswith(f"{param}: ")
    assert "is not supported by this server" in error.message


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_parts_other_than_text_are_unsupported(kind: str) -> None:
    """An image or sound in a message is refused at its `type`."""
    parts = [{"type": "text", "text": "look"}, {"type": kind, kind: {}}]
    error = refused(with_field("messages", [{"role": "user", "content": parts}]))
    assert (type(error), error.param) == (UnsupportedParameter, "messages[0].content[1].type")


@pytest.mark.parametrize(
    ("field", "value"),
    [("best_of", 2), ("echo", True), ("logprobs", 1), ("suffix", "x"), ("prompt", ["a", "b"]), ("prompt", [[1], [2]]), ("n", 2)],
)
def test_what_completions_cannot_do_is_unsupported(field: str, value: object) -> None:
    """The older endpoint refuses in the same way."""
    error = refused(with_field(field, value, decode_completion), decode_completion)
    assert (type(error), error.param) == (UnsupportedParameter, field)


@pytest.mark.parametrize(
    ("body", "param", "hint"),
    [
        ({"temprature": 1}, "temprature", "temperature"),
        ({"max_token": 1}, "max_token", "max_tokens"),
        ({"stream": True, "stream_options": {"include_usge": True}}, "stream_options.include_usge", "stream_options.include_usage"),
        ({"messages": [{"role": "user", "contnt": "x"}]}, "messages[0].contnt", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "txt": ""}]}]},
            "messages[0].content[0].txt",
            "messages[0].content[0].text",
        ),
        ({"repetition": 1}, "repetition", None),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_name(body: dict[str, Any], param: str, hint: str | None) -> None:
    """A misspelt parameter is told apart, at any depth, and the message offers the right name."""
    error = refused(json.dumps(MINIMAL[decode_chat] | body).encode())
    assert (type(error), error.param) == (UnknownParameter, param)
    assert (f"Did you mean {hint}?" in error.message) == (hint is not None)


@pytest.mark.parametrize(
    "name", ["zz - at `$.stop[0]", "zz - at `$.stop.x", "zz - at `$.stop[...]", "zz - at `key` in `$.metadata", "`", " - at "]
)
def test_a_name_cannot_pose_as_a_place(name: str) -> None:
    """An unknown field is told as what it is, also where its name imitates the reader's own messages."""
    error = refused(json.dumps(MINIMAL[decode_chat] | {"stop": ["a"], "metadata": {}, name: 1}).encode())
    assert (type(error), error.param) == (UnknownParameter, name)


def test_a_very_long_name_does_not_come_back_whole() -> None:
    """Error messages stay short whatever was sent."""
    error = refused(with_field("x" * 1_000_000, 1))
    assert len(error.message) < 300


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
    ],
)
def test_a_missing_field_is_named(body: dict[str, Any], param: str) -> None:
    """What is required and not there is told with its path."""
    error = refused(json.dumps(body).encode())
    assert (type(error), error.param) == (MissingParameter, param)


@pytest.mark.parametrize(
    ("params", "decode"),
    [
        (chat_create_params.CompletionCreateParamsBase, decode_chat),
        (completion_create_params.CompletionCreateParamsBase, decode_completion),
    ],
)
def test_no_parameter_of_openai_is_unknown(params: Any, decode: Any) -> None:
    """Every parameter of the installed `openai` package is known here, at least enough to be refused as unsupported."""
    unknown = [error.param for field in params.__annotations__ if isinstance(error := outcome(field, decode), UnknownParameter)]
    assert not set(unknown) & set(params.__annotations__)


def outcome(field: str, decode: Any) -> ApiError | None:
    """The error that an object at `field` is answered with, None if it is taken."""
    try:
        decode(with_field(field, {"zzz": True}, decode))
    except ApiError as error:
        return error
    return None
