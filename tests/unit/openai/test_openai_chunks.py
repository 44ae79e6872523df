"""Streams, judged frame by frame: by the event-stream format, by the official package's types, and by the types they are cut from."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk as OfficialChunk

from services.openai import chunks, errors, responses
from services.openai.chunks import ChatChunks, CompletionChunks

USAGE = responses.count_usage(3, 4)
TEXTS = [
    "Hello", "", " ", "\n", "\r", "\r\n\r\n", "data: [DONE]\n\n", 'quotes " and \\', "\x00\x1f\x7f\x85", "\u2028\u2029", "👩\u200d💻",
    "e\u0301", "\U0010ffff", chunks._MARK, '{"content":"x"}',
]  # fmt: skip


def event(frame: bytes) -> Any:
    """The JSON of a frame that is exactly one event, for readers of bytes and for those that split lines as `str` does."""
    assert frame.startswith(b"data: ")
    assert frame.endswith(b"\n\n")
    assert frame.count(b"\n") == 2
    assert b"\r" not in frame
    assert len(frame.decode().splitlines()) == 2
    return json.loads(frame.removeprefix(b"data: "))


def no_extras(value: Any) -> None:
    """Fails if a model, at any depth, holds keys that its type does not name."""
    for item in value if isinstance(value, list) else [value]:
        assert not getattr(item, "model_extra", None)
        for name in getattr(type(item), "model_fields", ()):
            no_extras(getattr(item, name))


def frames_of(stream: ChatChunks | CompletionChunks, texts: list[str]) -> list[Any]:
    """The events of a whole answer."""
    frames = [stream.role(), *(stream.delta(text) for text in texts), stream.finish("stop"), stream.usage(USAGE)]
    return [event(frame) for frame in frames if frame]


@pytest.mark.parametrize("include_usage", [True, False])
def test_a_chat_stream_is_what_the_official_client_expects(include_usage: bool) -> None:
    """Every chunk fits OpenAI's type strictly; only with `include_usage` do chunks speak of usage, null but in the last."""
    events = frames_of(ChatChunks("chatcmpl-1", 5, "demo", include_usage=include_usage), TEXTS)
    for plain in events:
        no_extras(OfficialChunk.model_validate(plain, strict=True))
        assert (plain["id"], plain["object"], plain["created"], plain["model"]) == ("chatcmpl-1", "chat.completion.chunk", 5, "demo")
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [plain["choices"][0]["delta"] for plain in events[1 : 1 + len(TEXTS)]] == [{"content": text} for text in TEXTS]
    ends = [plain["choices"][0]["finish_reason"] for plain in events if plain["choices"]]
    assert ends == [None] * (1 + len(TEXTS)) + ["stop"]
    if include_usage:
        assert [plain["usage"] for plain in events[:-1]] == [None] * (2 + len(TEXTS))
        assert (events[-1]["choices"], events[-1]["usage"]["total_tokens"]) == ([], 7)
    else:
        assert not any("usage" in plain for plain in events)


def test_the_official_client_puts_the_stream_together() -> None:
    """The package's own accumulator ends with the text, the reason and the usage."""
    state: Any = ChatCompletionStreamState()
    for plain in frames_of(ChatChunks("chatcmpl-1", 5, "demo", include_usage=True), TEXTS):
        state.handle_chunk(OfficialChunk.model_validate(plain))
    answer = state.get_final_completion()
    assert answer.choices[0].message.content == "".join(TEXTS)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 7


@pytest.mark.parametrize("include_usage", [True, False])
def test_a_text_stream_is_what_the_official_client_expects(include_usage: bool) -> None:
    """A completion's chunks are completions; `finish_reason` is null until the last one, as OpenAI sends it though its type denies it."""
    events = frames_of(CompletionChunks("cmpl-1", 5, "demo", include_usage=include_usage), TEXTS)
    with_choice = [plain for plain in events if plain["choices"]]
    assert [plain["choices"][0]["text"] for plain in with_choice] == [*TEXTS, ""]
    assert [plain["choices"][0]["finish_reason"] for plain in with_choice] == [None] * len(TEXTS) + ["stop"]
    for plain in events:
        for choice in plain["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        no_extras(Completion.model_validate(plain, strict=True))
    assert ("usage" in events[0]) == include_usage
    assert (events[-1]["choices"] == []) == include_usage


@settings(max_examples=200, deadline=None)
@given(text=st.text(), model=st.text(max_size=20), include_usage=st.booleans())
def test_cut_frames_equal_encoded_ones(text: str, model: str, include_usage: bool) -> None:
    """A frame put together from its pieces is the JSON of its type, whatever the text and the model's name."""
    usage = None if include_usage else msgspec.UNSET
    choice = chunks.ChunkChoice(delta=chunks.Delta(content=text))
    whole = chunks.ChatCompletionChunk(id="i", created=1, model=model, system_fingerprint="f", choices=(choice,), usage=usage)
    frame = ChatChunks("i", 1, model, include_usage=include_usage, system_fingerprint="f").delta(text)
    assert event(frame) == json.loads(msgspec.json.encode(whole))
    part = responses.TextChoice(text=text, finish_reason=None)
    completion = chunks.CompletionChunk(id="i", created=1, model=model, system_fingerprint="f", choices=(part,), usage=usage)
    frame = CompletionChunks("i", 1, model, include_usage=include_usage, system_fingerprint="f").delta(text)
    assert event(frame) == json.loads(msgspec.json.encode(completion))


def test_an_error_ends_a_stream_as_an_event() -> None:
    """After the first byte a failure is OpenAI's error body in one event."""
    plain = event(chunks.error_event(errors.EngineError("It broke:\n\u2028twice.")))
    assert plain["error"] == {"message": "It broke:\n\u2028twice.", "type": "server_error", "param": None, "code": "engine_error"}


def test_comments_are_one_line_that_clients_skip() -> None:
    """A comment begins with a colon and cannot smuggle in an event."""
    assert chunks.comment("keepalive") == b": keepalive\n\n"
    assert chunks.comment("server-timing queue;dur=1.5, prefill;dur=2") == b": server-timing queue;dur=1.5, prefill;dur=2\n\n"
    for text in ("a\nb", "a\r", "\n", "a\u2028b"):
        with pytest.raises(ValueError, match="one line"):
            chunks.comment(text)
