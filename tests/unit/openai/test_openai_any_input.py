"""Properties over all requests that hypothesis can think of: no input breaks the reader, and its two ways of reading agree."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.openai import bodies, explain
from services.openai.errors import ApiError, BadRequest
from services.openai.requests import decode_chat, decode_completion, decode_short_chat

RELAXED = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DECODERS = (decode_chat, decode_short_chat, decode_completion)
BODIES: tuple[Any, ...] = (bodies.ChatCompletionBody, bodies.ShortChatBody, bodies.CompletionBody)

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
any_json = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4), max_leaves=10
)
FULL: dict[str, Any] = {
    "model": "demo", "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 7, "stop": ["a"], "max_tokens": 9, "min_tokens": 1,
    "ignore_eos": False, "stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}, "n": 1, "user": "u",
    "metadata": {"k": "v"}, "logit_bias": {}, "store": False,
}  # fmt: skip
CALL: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CHAT: dict[str, Any] = FULL | {
    "tools": [], "response_format": {"type": "text"}, "modalities": ["text"], "logprobs": False,
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "name": "n", "content": [{"type": "text", "text": "t"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "content": "r"},
        {"role": "assistant", "content": [{"type": "text", "text": "t"}, {"type": "refusal", "refusal": "r"}], "annotations": []},
    ],
}  # fmt: skip
EXAMPLES: dict[Any, dict[str, Any]] = {
    bodies.ChatCompletionBody: CHAT,
    bodies.ShortChatBody: FULL | {"message": "m", "system": "s"},
    bodies.CompletionBody: FULL | {"prompt": [[1, 2]], "best_of": 1, "echo": False},
}


def paths(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values within `value`, itself included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(below for key, item in items for below in paths(item, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: object) -> Any:
    """A copy of `value` with `new` at `path`."""
    if not path:
        return new
    root = target = copy.deepcopy(value)
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = new
    return root


def outcome(decode: Any, body: bytes) -> ApiError | None:
    """The error of a body, None if it is good; anything but an `ApiError` is raised on and fails the test."""
    try:
        decode(body)
    except ApiError as error:
        return error
    return None


@RELAXED
@given(st.data())
def test_any_json_at_any_field_is_taken_or_refused_in_words(data: st.DataObject) -> None:
    """Whatever stands at whatever place of a request, the answer is a result or a 400 with a short message."""
    kind = data.draw(st.sampled_from(BODIES))
    body = changed(EXAMPLES[kind], data.draw(st.sampled_from(paths(EXAMPLES[kind]))), data.draw(any_json))
    for decode in DECODERS:
        error = outcome(decode, json.dumps(body).encode())
        if error:
            assert isinstance(error, BadRequest)
            assert 0 < len(error.message) < 1000
            assert json.loads(msgspec.json.encode(error.body()))["error"]["code"] == error.code


@RELAXED
@given(st.data())
def test_any_extra_field_is_refused_wherever_it_stands(data: st.DataObject) -> None:
    """No object of a request has room for a field that would be dropped silently."""
    kind = data.draw(st.sampled_from(BODIES))
    example = EXAMPLES[kind]
    free = {("metadata",), ("logit_bias",)}
    objects = [path for path in paths(example) if isinstance(at(example, path), dict) and path not in free]
    name = "zz" + data.draw(st.text(max_size=10))
    body = changed(example, (*data.draw(st.sampled_from(objects)), name), data.draw(any_json))
    decode = DECODERS[BODIES.index(kind)]
    assert outcome(decode, json.dumps(example).encode()) is None
    error = outcome(decode, json.dumps(body).encode())
    assert error is not None
    assert error.code == "unknown_parameter"


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """The value at `path`."""
    for key in path:
        value = value[key]
    return value


@RELAXED
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode) | any_json.map(json.dumps).map(str.encode))
def test_any_bytes_are_taken_or_refused(body: bytes) -> None:
    """No body, JSON or not, breaks the reader."""
    for decode in DECODERS:
        outcome(decode, body)


@RELAXED
@given(st.integers(0, 2000), st.sampled_from([b"", b"\xff", b"\\ud800", b'"', b"{", b"[", b"\x00"]))
def test_any_damage_to_a_good_body_is_taken_or_refused(place: int, piece: bytes) -> None:
    """A body that was cut or damaged on its way is refused, not a fault of the server."""
    body = json.dumps(CHAT).encode()
    for damaged in (body[:place], body[:place] + piece + body[place:], body[:place] + piece + body[place + 1 :]):
        outcome(decode_chat, damaged)


@RELAXED
@given(st.data())
def test_the_words_agree_with_the_types(data: st.DataObject) -> None:
    """For every body that its type refuses, the reason can be told in words."""
    kind = data.draw(st.sampled_from(BODIES))
    body = changed(EXAMPLES[kind], data.draw(st.sampled_from(paths(EXAMPLES[kind]))), data.draw(any_json))
    text = json.dumps(body)
    error = type_error(text, kind)
    assert error is None or explain.problem_of(msgspec.json.decode(text), kind, error) is not None


def type_error(text: str, kind: Any) -> msgspec.ValidationError | None:
    """Why a type refuses a body, None if it takes it."""
    try:
        msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        return error
    return None


@RELAXED
@given(
    max_tokens=st.none() | st.integers(1, 2**31 - 1),
    temperature=st.none() | st.floats(0, 2),
    top_p=st.none() | st.floats(0, 1, exclude_min=True),
    top_k=st.none() | st.integers(-1, 2**31 - 1),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    stop=st.none() | st.text(min_size=1, max_size=99) | st.lists(st.text(min_size=1, max_size=99), max_size=4),
    text=st.text(),
)
def test_good_requests_arrive_as_they_were_sent(text: str, **sent: Any) -> None:
    """No value within its bounds is refused or changed."""
    request = decode_chat(json.dumps({"messages": [{"role": "user", "content": text}], **sent}, ensure_ascii=False).encode())
    options, stop = request.options, sent["stop"]
    assert request.messages[0]["content"] == text
    assert (options.max_tokens, options.seed) == (sent["max_tokens"], sent["seed"])
    assert (options.temperature, options.top_p) == (sent["temperature"], sent["top_p"])
    assert options.top_k == (None if sent["top_k"] is None else max(sent["top_k"], 0))
    assert options.stop == ((stop,) if isinstance(stop, str) else tuple(stop or ()))
