from __future__ import annotations

import pytest

from services.openai.chunks import DONE, ChatChunks, CompletionChunks, comment, error_event
from services.openai.errors import EngineError
from services.openai.responses import Usage
from services.ops.load.sse import EventReader, completion_tokens, error_code, is_answer

TEXTS = ["Hello", ' "text":"no" ', "\n\n", "data: [DONE]", "ä 中", '{"error": {"code": "no"}}']


def frames(of: type[ChatChunks | CompletionChunks], *, include_usage: bool = True) -> list[bytes]:
    """A whole answer as a pod sends it."""
    chunks = of("id", 1, "demo", include_usage=include_usage)
    ends = [chunks.finish("stop"), chunks.usage(Usage(7, 42, 49)), comment("server-timing total;dur=1"), DONE]
    return [frame for frame in [comment("keepalive"), chunks.role(), *map(chunks.delta, TEXTS), *ends] if frame]


@pytest.mark.parametrize("of", [ChatChunks, CompletionChunks])
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_stream_is_understood_however_it_is_cut(of: type[ChatChunks], size: int) -> None:
    """Texts, tokens and the end, in whatever pieces the bytes come; text that looks like the protocol is text."""
    reader, whole = EventReader(), b"".join(frames(of))
    found = sum(reader.feed(whole[start : start + size]) for start in range(0, len(whole), size))
    assert (found, reader.texts, reader.tokens) == (len(TEXTS), len(TEXTS), 42)
    assert reader.is_whole
    assert not reader.code


def test_the_frames_before_the_first_text_are_no_token() -> None:
    """Neither a comment nor the opening frame counts as the first token."""
    reader, parts = EventReader(), frames(ChatChunks)
    assert [reader.feed(part) for part in parts[:3]] == [0, 0, 1]


def test_without_usage_events_with_text_are_the_tokens() -> None:
    """A server that tells no usage is counted by what it sent."""
    reader = EventReader()
    reader.feed(b"".join(frames(ChatChunks, include_usage=False)))
    assert reader.tokens == len(TEXTS)


def test_a_stream_without_its_end_is_not_whole() -> None:
    """Nor is one whose last event is cut."""
    reader, whole = EventReader(), b"".join(frames(ChatChunks))
    reader.feed(whole[:-1])
    assert not reader.is_whole
    reader.feed(whole[-1:])
    assert reader.is_whole


def test_an_error_event_is_told_by_its_code() -> None:
    """A stream that ends with an error is not whole, even if it says that it is done."""
    reader = EventReader()
    reader.feed(b"".join(frames(ChatChunks)[:4]) + error_event(EngineError("broke")) + DONE)
    assert (reader.is_whole, reader.code) == (False, "engine_error")


def test_other_servers_streams_are_understood() -> None:
    """Lines that end with CR LF, blanks after colons, and the text of reasoning."""
    reader = EventReader()
    for data in (b'data: {"choices": [{"delta": {"content": ""}}]}\r\n\r', b'\ndata: {"choices": [{"delta": {"content": "a"}}]}\r\n\r\n'):
        reader.feed(data)
    reader.feed(b'data: {"choices":[{"delta":{"reasoning_content":"b"}}]}\n\ndata:[DONE]\n\n')
    assert (reader.texts, reader.is_whole) == (2, True)


def test_a_json_answer_is_whole_if_it_has_choices() -> None:
    """Half an answer, an error and no JSON at all are none."""
    answer = b'{"id": "x", "choices": [{"index": 0}], "usage": {"prompt_tokens": 1, "completion_tokens": 20}}'
    error = b'{"error": {"message": "m", "type": "rate_limit_error", "param": null, "code": "queue_full"}}'
    assert is_answer(answer)
    assert completion_tokens(answer) == 20
    assert not any(is_answer(body) for body in (answer[:-1], error, b"", b"[]", b"upstream connect error", b'{"choices": []}'))
    assert [error_code(body) for body in (error, answer, b"<html>", b'{"error": {"type": "t"}}')] == ["queue_full", "", "", "t"]
