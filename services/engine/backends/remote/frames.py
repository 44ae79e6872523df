"""What is seen of an answer's bytes as they pass: where frames end, how many tokens they bring, how the answer ended.

No frame is parsed but for its usage. Marks are looked for where the text of an answer cannot have them: at a line's beginning, or in
quotes, which JSON escapes in texts.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import Struct

from services.engine.generation import FinishReason
from services.openai.upstream_errors import UpstreamError

_DONE = re.compile(rb"^data: ?\[DONE\]\r?$", re.MULTILINE)
_ENDS = (b"\n\n", b"\r\n\r\n")
_DATA, _ROLE = b"data:", b'"role":'
_CUT = re.compile(rb'"finish_reason": ?"length"')
_USAGE = re.compile(rb'"usage": ?(\{(?:[^{}]|\{[^{}]*\})*\})')
# Of the stream's end: its last frames fit, whatever a server adds to them.
_END_BYTES = 4096
_MAX_FRAME_BYTES = 8 * 1024 * 1024
# Of an answer that does not tell its usage.
_BYTES_PER_TOKEN = 4


class _Details(Struct):
    cached_tokens: int | None = None


class Usage(Struct):
    """What an upstream counted, as far as it says."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None

    @property
    def cached_tokens(self) -> int:
        """Of the prompt, those that the upstream knew."""
        return (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0


class Piece(Struct):
    """Whole frames, or a whole JSON answer, as they came; the last piece has a `finish_reason`.

    `num_tokens` of the last piece makes the sum exact, so it may be negative; `usage` is what it tells.
    """

    data: bytes
    num_tokens: int
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


class Frames:
    """Cuts a stream's bytes where a frame ends, so that nothing of ours (a comment, an error) can come in the middle of one."""

    def __init__(self) -> None:
        """At the stream's beginning."""
        self._rest = b""
        self._end = b""
        self._num_tokens = 0

    def take(self, data: bytes) -> Piece | None:
        """The frames that are whole with `data`; None if none is. Raises `UpstreamError` for a frame that does not end."""
        data = self._rest + data if self._rest else data
        end = max((at + len(mark) for mark in _ENDS if (at := data.rfind(mark)) >= 0), default=0)
        self._rest = data[end:]
        if len(self._rest) > _MAX_FRAME_BYTES:
            raise UpstreamError("The upstream's stream has an event without end")
        if not end:
            return None
        return self._piece(data[:end] if self._rest else data)

    def close(self) -> Piece | None:
        """What is left where the upstream has ended: its last frame, if that says that all is there and lacks only its blank line."""
        return self._piece(self._rest) if _DONE.search(self._rest) else None

    def _piece(self, data: bytes) -> Piece:
        is_last = b"[DONE]" in data and _DONE.search(data) is not None
        # A token a frame; the frame that only opens the message has none, nor has the end's mark.
        num_tokens = data.count(b"\n" + _DATA) + data.startswith(_DATA) - is_last
        if not self._end:
            num_tokens -= _ROLE in data
        self._end = (self._end + data)[-_END_BYTES:]
        if not is_last:
            num_tokens = max(0, num_tokens)
            self._num_tokens += num_tokens
            return Piece(data, num_tokens)
        usage, counted = _usage(self._end), max(0, self._num_tokens + num_tokens)
        exact = counted if usage is None or usage.completion_tokens is None else usage.completion_tokens
        return Piece(data, exact - self._num_tokens, "length" if _CUT.search(self._end) else "stop", usage)


class _Answer(Struct):
    usage: Usage | None = None


def whole(data: bytes) -> Piece:
    """A JSON answer, counted by the usage that it tells. Raises `UpstreamError` if it is no JSON object."""
    try:
        usage = msgspec.json.decode(data, type=_Answer).usage
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamError("The upstream's answer cannot be read: it is not the JSON of an answer") from error
    told = usage.completion_tokens if usage else None
    return Piece(data, len(data) // _BYTES_PER_TOKEN if told is None else told, "length" if _CUT.search(data) else "stop", usage)


def _usage(end: bytes) -> Usage | None:
    """The last one that a stream's end tells."""
    told = _USAGE.findall(end)
    try:
        return msgspec.json.decode(told[-1], type=Usage) if told else None
    except msgspec.DecodeError:
        return None
