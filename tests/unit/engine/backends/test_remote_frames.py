from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.backends.remote.frames import Frames, Piece, whole
from services.openai.errors import ApiError

FRAME = b'data: {"choices":[{"delta":{"content":"data: [DONE] \\n\\n"}}]}\n\n'
OPENING = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
COMMENT, DONE = b": ping\n\n", b"data: [DONE]\n\n"
CUT = b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\n'


def usage(num_tokens: int) -> bytes:
    """A last frame, with details as OpenAI has them."""
    return b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":%d,"details":{"completion_tokens":1}}}\n\n' % num_tokens


def taken(stream: bytes, cuts: list[int]) -> list[Piece]:
    """What comes of a stream that arrives in these pieces."""
    frames, pieces, places = Frames(), [], sorted({0, *(cut % len(stream) for cut in cuts), len(stream)})
    for begin, end in itertools.pairwise(places):
        piece = frames.take(stream[begin:end])
        pieces += [piece] if piece else []
    last = frames.close()
    return pieces + ([last] if last else [])


@given(
    st.lists(st.sampled_from([FRAME, COMMENT, b":\n\n"]), max_size=6),
    st.booleans(),
    st.none() | st.integers(0, 99),
    st.sampled_from([b"\n", b"\r\n"]),
    st.lists(st.integers(0, 2000), max_size=12),
)
def test_however_a_stream_is_cut_it_is_the_same(
    frames: list[bytes], is_cut: bool, told: int | None, line_end: bytes, cuts: list[int]
) -> None:
    """Every byte comes once, a piece ends with a frame, and what is counted does not depend on where the network cut."""
    stream = OPENING + b"".join(frames) + (CUT if is_cut else b"") + (b"" if told is None else usage(told)) + DONE
    stream = stream.replace(b"\n", line_end)
    pieces = taken(stream, cuts)
    assert b"".join(piece.data for piece in pieces) == stream
    assert all(piece.data.endswith(line_end * 2) for piece in pieces)
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["length" if is_cut else "stop"]
    assert pieces[-1].finish_reason
    assert sum(piece.num_tokens for piece in pieces) == (frames.count(FRAME) + is_cut if told is None else told)


@pytest.mark.parametrize("end", [b"", b"data: [DO", FRAME[:-1], b'data: {"text":"data: [DONE]"}\n\n'])
def test_what_has_no_end_has_none(end: bytes) -> None:
    """Only the end's own line ends a stream, and half a frame is not passed on."""
    pieces = taken(FRAME + end, [])
    assert all(piece.finish_reason is None for piece in pieces)
    assert b"".join(piece.data for piece in pieces) in {FRAME, FRAME + end}


def test_an_end_without_its_blank_line_counts() -> None:
    """Some servers close at once."""
    assert [piece.finish_reason for piece in taken(FRAME + b"data: [DONE]", [3, 80])] == [None, "stop"]


def test_a_frame_without_end_is_refused() -> None:
    """What would fill the memory."""
    frames = Frames()
    assert frames.take(b"x" * (8 << 20)) is None
    with pytest.raises(ApiError, match="without end"):
        frames.take(b"x")


@pytest.mark.parametrize(
    ("body", "num_tokens", "reason"),
    [
        (b'{"choices":[{"finish_reason": "length"}],"usage":{"completion_tokens":5}}', 5, "length"),
        (b'{"choices":[{"text":"\\"finish_reason\\":\\"length\\""}],"usage":null}', 16, "stop"),
        (b'{"usage":{"completion_tokens":null}}', 9, "stop"),
    ],
)
def test_whole_answers_are_counted(body: bytes, num_tokens: int, reason: str) -> None:
    """By their usage, or by their size where they tell none."""
    piece = whole(body)
    assert (piece.num_tokens, piece.finish_reason) == (num_tokens, reason)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"a":\xff}', b'"text"'])
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    """It is the upstream's fault, not a bug of ours."""
    with pytest.raises(ApiError, match="cannot be read"):
        whole(body)
