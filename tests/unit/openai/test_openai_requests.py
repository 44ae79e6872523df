"""What a good request means: the messages, prompt and options that handlers get."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.openai.errors import ApiError, InvalidValue, MissingParameter, UnknownParameter
from services.openai.requests import decode_chat, decode_completion, decode_short_chat

USER = {"role": "user", "content": "Hello"}


def chat(**fields: Any) -> bytes:
    """The body of a chat completion with one user message, unless `messages` are given."""
    return json.dumps({"messages": [USER]} | fields).encode()


def refused(body: bytes) -> ApiError:
    """The error that a chat body is answered with."""
    with pytest.raises(ApiError) as caught:
        decode_chat(body)
    return caught.value


def test_a_bare_conversation_gets_the_documented_defaults() -> None:
    """A request with messages only is sampled as the model wants it, without limits of its own, as JSON."""
    request = decode_chat(chat())
    options = request.options
    assert request.model is None
    assert request.messages == [USER]
    assert (options.max_tokens, options.min_tokens, options.seed, options.stop) == (None, 0, None, ())
    assert (options.temperature, options.top_p, options.top_k, options.min_p) == (None, None, None, None)
    assert [options.ignore_eos, options.stream, options.include_usage] == [False, False, False]


def test_every_option_arrives() -> None:
    """What a client sets is what the engine is asked for."""
    fields = {"model": "demo", "temperature": 0, "top_p": 0.5, "top_k": 40, "min_p": 0.1, "seed": -(2**63), "stop": ["a", "b"]}
    more = {"max_tokens": 9, "min_tokens": 9, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    request = decode_chat(chat(**fields, **more))
    options = request.options
    assert request.model == "demo"
    assert (options.temperature, options.top_p, options.top_k, options.min_p, options.seed) == (0.0, 0.5, 40, 0.1, -(2**63))
    assert (options.max_tokens, options.min_tokens, options.stop) == (9, 9, ("a", "b"))
    assert options.ignore_eos
    assert options.stream
    assert options.include_usage


@pytest.mark.parametrize("field", ["temperature", "top_p", "top_k", "min_p", "seed", "stop", "stream", "stream_options", "max_tokens", "n"])
def test_null_means_the_default(field: str) -> None:
    """A null is the same as leaving the field out."""
    assert decode_chat(chat(**{field: None})).options == decode_chat(chat()).options


@pytest.mark.parametrize(("stop", "expected"), [([], ()), ("", ()), (None, ()), ("x", ("x",)), (["x"], ("x",)), (["x", "x"], ("x", "x"))])
def test_stop_is_a_text_or_a_list_and_an_empty_one_means_none(stop: object, expected: tuple[str, ...]) -> None:
    """`stop` in each of its forms."""
    assert decode_chat(chat(stop=stop)).options.stop == expected


@pytest.mark.parametrize("top_k", [-1, 0])
def test_top_k_is_switched_off_by_zero_or_minus_one(top_k: int) -> None:
    """Both conventions of switching `top_k` off work."""
    assert decode_chat(chat(top_k=top_k)).options.top_k == 0


def test_both_names_of_the_token_limit_work() -> None:
    """`max_completion_tokens` is `max_tokens`; both together must agree."""
    for fields, name in (({"max_tokens": 7}, "max_tokens"), ({"max_completion_tokens": 7}, "max_completion_tokens")):
        options = decode_chat(chat(**fields)).options
        assert (options.max_tokens, options.max_tokens_param) == (7, name)
    assert decode_chat(chat(max_completion_tokens=7, max_tokens=7)).options.max_tokens == 7
    error = refused(chat(max_completion_tokens=7, max_tokens=8))
    assert (type(error), error.param) == (InvalidValue, "max_completion_tokens")


def test_min_tokens_above_max_tokens_is_refused() -> None:
    """Limits that contradict each other are an error that names both."""
    error = refused(chat(max_tokens=5, min_tokens=6))
    assert (type(error), error.param) == (InvalidValue, "min_tokens")
    assert "max_tokens (5)" in error.message


def test_stream_options_need_a_stream() -> None:
    """`stream_options` without `stream: true` would be dropped silently, so it is refused."""
    assert refused(chat(stream_options={"include_usage": True})).param == "stream_options"


def test_neutral_values_and_fields_without_effect_are_accepted() -> None:
    """Clients that send OpenAI's defaults explicitly are served as if they had not."""
    neutral: dict[str, Any] = {
        "n": 1, "logprobs": False, "top_logprobs": 0, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "tools": [],
        "tool_choice": "none", "parallel_tool_calls": True, "response_format": {"type": "text"}, "modalities": ["text"], "store": False,
        "reasoning_effort": "none", "verbosity": "medium", "service_tier": "auto", "functions": [], "function_call": "auto", "audio": None,
    }  # fmt: skip
    without_effect = {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "metadata": {"a": "b"}}
    assert decode_chat(chat(**neutral, **without_effect)) == decode_chat(chat())


def test_messages_are_ready_for_a_chat_template() -> None:
    """Text parts are joined, `developer` is `system`, tool calls carry their arguments as an object."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "assistant", "content": [{"type": "text", "text": "two"}, {"type": "refusal", "refusal": "!"}], "refusal": None},
        {"role": "assistant", "content": None, "refusal": "No."},
    ]
    assert decode_chat(chat(messages=messages)).messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ab", "name": "Ann"},
        {"role": "assistant", "content": "", "tool_calls": [call | {"function": {"name": "f", "arguments": {"x": 1}}}]},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
        {"role": "assistant", "content": "two!"},
        {"role": "assistant", "content": "No."},
    ]


@pytest.mark.parametrize("arguments", ["", "{", "[1]", "[" * 100_000, '{"x": 1e400}'])
def test_arguments_that_are_no_object_are_passed_on_as_text(arguments: str) -> None:
    """What a model wrote as arguments is part of the conversation, valid or not."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = decode_chat(chat(messages=[USER, {"role": "assistant", "tool_calls": [call]}])).messages[1]
    assert message["tool_calls"][0]["function"]["arguments"] == arguments


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    """The message of an answer, with all its keys, is a valid turn of the next request."""
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": "Hi",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    assert decode_chat(chat(messages=[USER, answer])).messages[1] == {"role": "assistant", "content": "Hi"}


@pytest.mark.parametrize("empty", [{}, {"content": None}, {"tool_calls": []}])
def test_an_assistant_message_says_or_calls_something(empty: dict[str, Any]) -> None:
    """An assistant's turn may lack content only beside tool calls."""
    error = refused(chat(messages=[USER, {"role": "assistant", **empty}]))
    assert (type(error), error.param) == (MissingParameter, "messages[1].content")


def test_a_conversation_of_ten_thousand_messages_is_read() -> None:
    """A long conversation is a matter of the context, not of the reader."""
    assert len(decode_chat(chat(messages=[USER] * 10_000)).messages) == 10_000


def test_text_survives_whole() -> None:
    """No character of a prompt is changed, null and surrogate pairs included."""
    text = "\x00 \r\n \u2028 é e\u0301 👩\u200d💻 \U0010ffff"
    assert decode_chat(chat(messages=[{"role": "user", "content": text}])).messages[0]["content"] == text


def test_the_last_of_two_equal_keys_counts() -> None:
    """JSON with a key twice is read as most readers do."""
    assert decode_chat(b'{"temperature":0,"temperature":2,"messages":[{"role":"user","content":"x"}]}').options.temperature == 2.0


@pytest.mark.parametrize("prompt", ["x", ["x"]])
def test_a_completion_takes_one_text(prompt: object) -> None:
    """A prompt, or a list of one, is continued by OpenAI's default of 16 tokens."""
    request = decode_completion(json.dumps({"prompt": prompt}).encode())
    assert (request.prompt, request.options.max_tokens) == ("x", 16)


@pytest.mark.parametrize("prompt", [[1, 0], [[1, 0]]])
def test_a_completion_takes_token_ids(prompt: object) -> None:
    """Token ids are taken plainly or as a list of one."""
    assert decode_completion(json.dumps({"prompt": prompt}).encode()).prompt == [1, 0]


def test_the_short_form_is_one_message_with_an_optional_system_text() -> None:
    """`/chat` makes a conversation of `message` and `system`, with the usual options."""
    request = decode_short_chat(b'{"message": "Hello", "system": "Be brief.", "max_tokens": 5, "stream": true}')
    assert request.messages == [{"role": "system", "content": "Be brief."}, USER]
    assert (request.options.max_tokens, request.options.stream) == (5, True)


def test_the_short_form_takes_a_whole_conversation_too() -> None:
    """`/chat` with OpenAI's body is a chat completion."""
    assert decode_short_chat(chat(temperature=0.5)) == decode_chat(chat(temperature=0.5))


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        (b"{}", MissingParameter, "message"),
        (b'{"mesage": "x"}', UnknownParameter, "mesage"),
        (b'{"message": 1}', InvalidValue, "message"),
        (b'{"message": "x", "messages": []}', InvalidValue, "messages"),
        (b'{"messages": []}', InvalidValue, "messages"),
        (b"[]", InvalidValue, None),
    ],
)
def test_the_short_form_says_what_is_wrong(body: bytes, kind: type[ApiError], param: str | None) -> None:
    """A bad body of `/chat` is told in the terms of the form that it has."""
    with pytest.raises(ApiError) as caught:
        decode_short_chat(body)
    assert (type(caught.value), caught.value.param) == (kind, param)
