"""What a bad request is answered: the kind of error, the parameter's path, and what is allowed."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from services.openai import bodies
from services.openai.errors import InvalidJson, InvalidValue, UnknownParameter
from services.openai.requests import decode_chat, decode_completion, decode_short_chat
from tests.unit.openai.bad_bodies import MINIMAL, refused, with_field

VALUES: dict[str, Any] = {"null": None, "bool": True, "int": 1, "float": 0.5, "string": "zzz", "list": [True], "object": {"zzz": True}}
TEXT, NUMBER, WHOLE, SWITCH = {"null", "string"}, {"null", "int", "float"}, {"null", "int"}, {"null", "bool"}
# The JSON types that each field takes; where a type is right but the value is not neutral, the answer is another test's matter.
COMMON: dict[str, set[str]] = {
    "model": TEXT, "max_tokens": WHOLE, "temperature": NUMBER, "top_p": NUMBER, "top_k": WHOLE, "min_p": NUMBER, "seed": WHOLE,
    "stop": {"null", "string"}, "min_tokens": WHOLE, "ignore_eos": SWITCH, "stream": SWITCH, "stream_options": {"null"}, "n": WHOLE,
    "frequency_penalty": NUMBER, "presence_penalty": NUMBER, "logit_bias": {"null"}, "user": TEXT, "safety_identifier": TEXT,
    "prompt_cache_key": TEXT, "metadata": {"null"}, "service_tier": {"null"}, "store": SWITCH,
}  # fmt: skip
OF_CHAT: dict[str, set[str]] = {
    "max_completion_tokens": WHOLE, "logprobs": SWITCH, "top_logprobs": WHOLE, "response_format": {"null"}, "tools": {"null"},
    "tool_choice": {"null", "object"}, "parallel_tool_calls": SWITCH, "functions": {"null"}, "function_call": {"null", "object"},
    "modalities": {"null"}, "audio": {"null", "object"}, "moderation": {"null", "object"}, "prediction": {"null", "object"},
    "prompt_cache_options": {"null", "object"}, "prompt_cache_retention": {"null"}, "reasoning_effort": {"null"}, "verbosity": {"null"},
    "web_search_options": {"null", "object"},
}  # fmt: skip
CHAT = COMMON | OF_CHAT | {"messages": set()}
SHORT = COMMON | OF_CHAT | {"message": {"string"}, "system": TEXT}
TEXTS = COMMON | {"prompt": {"string"}, "best_of": WHOLE, "echo": SWITCH, "logprobs": WHOLE, "suffix": TEXT}
FORMS = [(decode_chat, CHAT), (decode_short_chat, SHORT), (decode_completion, TEXTS)]
WRONG_TYPES = [
    pytest.param(decode, field, right, id=f"{decode.__name__}-{field}") for decode, fields in FORMS for field, right in fields.items()
]


def test_the_tables_name_every_field() -> None:
    """A new field cannot be left out of the tests on wrong types."""
    for kind, fields in ((bodies.ChatCompletionBody, CHAT), (bodies.ShortChatBody, SHORT), (bodies.CompletionBody, TEXTS)):
        assert {field.encode_name for field in msgspec.structs.fields(kind)} == set(fields)


@pytest.mark.parametrize(("decode", "field", "right"), WRONG_TYPES)
def test_a_wrong_type_is_invalid_at_every_field(decode: Any, field: str, right: set[str]) -> None:
    """A value of the wrong JSON type is 400 at the field's path (or at the part of it that is wrong), never taken or dropped."""
    for kind in VALUES.keys() - right:
        error = refused(with_field(field, VALUES[kind], decode), decode)
        path = error.param or ""
        if path == field:
            assert type(error) is InvalidValue
            assert error.message.startswith(f"{field} must be ")
        else:
            assert path.startswith((f"{field}.zzz", f"{field}[0]"))
            assert type(error) in {InvalidValue, UnknownParameter}


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user"}, "role"),
        ({"role": "user", "content": "x"}, "content"),
        ({"role": "tool", "content": "x", "tool_call_id": "c"}, "tool_call_id"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}]}, "content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}]}, "content[0].type"),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]},
            "tool_calls[0].id",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]},
            "tool_calls[0].function.arguments",
        ),
    ],
)
def test_a_wrong_type_is_invalid_inside_messages(message: dict[str, Any], field: str) -> None:
    """The path leads to the very value that is wrong."""
    for kind in VALUES.keys() - {"string"}:
        target = changed = json.loads(json.dumps(message))
        *parents, last = field.replace("[", ".[").split(".")
        for name in parents:
            target = target[int(name[1:-1])] if name.startswith("[") else target[name]
        target[last] = VALUES[kind]
        error = refused(with_field("messages", [{"role": "user", "content": "x"}, changed]))
        assert type(error) is InvalidValue
        assert error.param in {f"messages[1].{field}", f"messages[1].{field}[0]"}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("temperature", 3, "temperature must be a number from 0 to 2, got 3."),
        ("temperature", -1, "temperature must be a number from 0 to 2, got -1."),
        ("temperature", "hot", 'temperature must be a number from 0 to 2, got "hot".'),
        ("top_p", 0, "top_p must be a number above 0 and at most 1, got 0."),
        ("max_tokens", True, "max_tokens must be a whole number, got true."),
        ("min_tokens", 10**400, "min_tokens must be a whole number from 0 to 2147483647, got a whole number of more than 30 digits."),
        ("top_k", -2, "top_k must be a whole number from -1 to 2147483647, got -2."),
        ("min_p", 1.5, "min_p must be a number from 0 to 1, got 1.5."),
        ("stop", ["a"] * 5, "stop must be a list of at most 4 strings, got a list of 5."),
        ("stop", "a" * 5000, "stop must be a string of at most 4096 characters, got a string of 5000 characters."),
        ("messages", [], "messages must be a list of at least 1 item, got an empty list."),
        ("modalities", ["image"], 'modalities[0] must be "text", got "image".'),
        ("logprobs", 1, "logprobs must be false, got 1."),
        ("n", 0, "n must be 1, got 0."),
        ("metadata", {str(n): "" for n in range(17)}, "metadata must be an object of at most 16 keys, got an object."),
    ],
)
def test_a_value_out_of_bounds_is_told_with_the_bounds(field: str, value: object, words: str) -> None:
    """The message says what is allowed and what was sent."""
    error = refused(with_field(field, value))
    assert (type(error), error.message) == (InvalidValue, words)


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("stop", ["a", ""], "stop[1]"),
        ("seed", 2**63, "seed"),
        ("seed", -(2**63) - 1, "seed"),
        ("metadata", {"k" * 65: ""}, "metadata"),
        ("metadata", {"k": "v" * 513}, "metadata.k"),
        ("messages", [{"role": "robot", "content": "x"}], "messages[0].role"),
        ("messages", ["x"], "messages[0]"),
    ],
)
def test_a_bad_value_is_named_by_its_path(field: str, value: object, param: str) -> None:
    """`param` leads to the value, also inside lists and objects."""
    error = refused(with_field(field, value))
    assert (type(error), error.param) == (InvalidValue, param)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ("", "prompt"),
        ([], "prompt"),
        ([[]], "prompt[0]"),
        ([-1], "prompt[0]"),
        ([1.5], "prompt[0]"),
        ([1, "a"], "prompt[1]"),
        ([2**31], "prompt[0]"),
        ([1] * 100_000 + [-1], "prompt[100000]"),
    ],
)
def test_a_bad_prompt_is_invalid(prompt: object, param: str) -> None:
    """A prompt is a text or token ids, not empty and not both."""
    error = refused(with_field("prompt", prompt, decode_completion), decode_completion)
    assert (type(error), error.param) == (InvalidValue, param)


NOT_JSON: list[tuple[bytes, str]] = [
    (b"", "is empty"), (b" \n", "is empty"), (b"{", "ends too early|truncated"), (b"nope", "invalid character"), (b"{} x", "trailing"),
    (b'{"a": NaN}', "NaN is not a JSON number"), (b'{"temperature": -Infinity}', "Infinity is not a JSON number"),
    (b'\xef\xbb\xbf{"a": 1}', "byte order mark"), ('{"a": "é"}'.encode("latin-1"), "not UTF-8"), ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    (b'{"user": "\\ud800"}', "surrogate"), (b'{"user": "\\udc00"}', "surrogate"), (b'{"user": "\\ud800\\u0041"}', "surrogate"),
    (b'{"x": "\\ud800"}', "surrogate"), (b'{"\\ud800": 1}', "surrogate"), (b'{"user": "\xed\xa0\x80"}', "not UTF-8"),
    (b'{"user": "a\nb"}', "invalid character"), (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nests"),
    (b'{"tools":' + b"[" * 100_000, "nests"), (b'{"a":' * 100_000, "nests"), (b"[" * 100_000, "nests"),
]  # fmt: skip


@pytest.mark.parametrize("decode", MINIMAL)
@pytest.mark.parametrize(("body", "words"), NOT_JSON)
def test_what_is_not_json_is_refused(body: bytes, words: str, decode: Any) -> None:
    """Bytes that no JSON reader takes are 400 `invalid_json`, and the message says why."""
    error = refused(body, decode)
    assert (type(error), error.param) == (InvalidJson, None)
    assert any(word in error.message for word in words.split("|")), error.message


@pytest.mark.parametrize("decode", MINIMAL)
@pytest.mark.parametrize("body", [b"[]", b"[{}]", b"3", b'"x"', b"null", b"true"])
def test_a_body_that_is_no_object_is_refused(body: bytes, decode: Any) -> None:
    """JSON of another type than an object is 400 `invalid_value`."""
    error = refused(body, decode)
    assert (type(error), error.param) == (InvalidValue, None)
    assert error.message.startswith("The body must be an object")


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"9" * 400, b"9" * 100_000, b"-" + b"9" * 5000])
@pytest.mark.parametrize("field", [b"temperature", b"min_tokens", b"seed", b"n", b"metadata", b"user"])
def test_a_huge_number_is_refused_at_its_field(field: bytes, number: bytes) -> None:
    """Numbers beyond every range are a client's error like any other."""
    error = refused(b'{"messages":[{"role":"user","content":"x"}],"' + field + b'":' + number + b"}")
    assert (type(error), error.param) == (InvalidValue, field.decode())


def test_a_bad_value_before_a_good_one_of_the_same_key_is_refused() -> None:
    """A key that comes twice must be valid twice."""
    error = refused(b'{"temperature":"x","temperature":1,"messages":[{"role":"user","content":"x"}]}')
    assert (type(error), error.param) == (InvalidValue, "temperature")
