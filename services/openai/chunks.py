"""Streamed answers as server-sent events, in bytes.

What is the same in all chunks of an answer is encoded once; a token costs the encoding of its text. The types say what a chunk is, make
`/openapi.json`, and are what the frames are cut from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from services.openai.responses import FinishReason, TextChoice, Usage, error_body

if TYPE_CHECKING:
    from services.openai.errors import ApiError

DONE = b"data: [DONE]\n\n"
_ENCODER = msgspec.json.Encoder()
# Stands for the text of a delta; found from the right, where nothing but fixed bytes follows it.
_MARK = "<text of the delta>"
# Some clients split lines as `str.splitlines` does; JSON leaves these line ends as they are.
_LINE_ENDS = tuple((end.encode(), escape) for end, escape in (("\x85", rb"\u0085"), ("\u2028", rb"\u2028"), ("\u2029", rb"\u2029")))


class Delta(Struct, frozen=True, kw_only=True):
    """What a chunk adds to the message; empty in the chunk that ends it."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: UnsetType | None = UNSET


class ChunkChoice(Struct, frozen=True, kw_only=True):
    """The one answer of a chat completion, in part."""

    index: Literal[0] = 0
    delta: Delta
    logprobs: None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(Struct, frozen=True, kw_only=True):
    """An event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: Annotated[int, Meta(description="Unix time in seconds.")]
    model: str
    system_fingerprint: str | None = None
    choices: tuple[ChunkChoice, ...] = ()
    usage: Annotated[Usage | UnsetType | None, Meta(description="Only with include_usage: null but in the last chunk.")] = UNSET


class CompletionChunk(Struct, frozen=True, kw_only=True):
    """An event of a streamed completion."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: Annotated[int, Meta(description="Unix time in seconds.")]
    model: str
    system_fingerprint: str | None = None
    choices: tuple[TextChoice, ...] = ()
    usage: Annotated[Usage | UnsetType | None, Meta(description="Only with include_usage: null but in the last chunk.")] = UNSET


class Chunks(Protocol):
    """The frames of one answer, in the order role, delta…, end. An empty frame is not sent."""

    def role(self) -> bytes:
        """The frame that opens the message; empty for completions, which have none."""

    def delta(self, text: Any) -> bytes:
        """The frame that adds `text`."""

    def end(self, reason: FinishReason, usage: Usage, times: bytes) -> bytes:
        """The frames that end the answer; `times` is a comment."""


class _Frames:
    """What chat completions and completions frame alike."""

    __slots__ = ("_head", "_include_usage", "_prefix", "_suffix")

    def __init__(self, head: ChatCompletionChunk | CompletionChunk, marked: ChunkChoice | TextChoice, *, include_usage: bool) -> None:
        self._head = msgspec.structs.replace(head, usage=None) if include_usage else head
        self._include_usage = include_usage
        self._prefix, _, self._suffix = self._frame(marked).rpartition(_ENCODER.encode(_MARK))

    def delta(self, text: str) -> bytes:
        """The frame that adds `text`."""
        return self._prefix + _one_line(_ENCODER.encode(text)) + self._suffix

    def usage(self, usage: Usage) -> bytes:
        """The frame that tells the usage; empty unless the request asked for it."""
        return _event(msgspec.structs.replace(self._head, usage=usage)) if self._include_usage else b""

    def finish(self, reason: FinishReason) -> bytes:
        """The frame that ends the message."""
        raise NotImplementedError

    def end(self, reason: FinishReason, usage: Usage, times: bytes) -> bytes:
        """The frames that end the answer: finish, usage, a comment with `times`, `DONE`."""
        return self.finish(reason) + self.usage(usage) + times + DONE

    def _frame(self, choice: ChunkChoice | TextChoice) -> bytes:
        return _event(msgspec.structs.replace(self._head, choices=(choice,)))


class ChatChunks(_Frames):
    """The frames of a streamed chat completion; `created` in Unix seconds."""

    __slots__ = ()

    def __init__(
        self,
        id: str,  # noqa: A002 - OpenAI's name
        created: int,
        model: str,
        *,
        include_usage: bool = False,
        system_fingerprint: str | None = None,
    ) -> None:
        """`include_usage` as the request's `stream_options` say."""
        head = ChatCompletionChunk(id=id, created=created, model=model, system_fingerprint=system_fingerprint)
        super().__init__(head, ChunkChoice(delta=Delta(content=_MARK)), include_usage=include_usage)

    def role(self) -> bytes:
        """The frame that opens the message."""
        return self._frame(ChunkChoice(delta=Delta(role="assistant", content="", refusal=None)))

    def finish(self, reason: FinishReason) -> bytes:
        """The frame that ends the message."""
        return self._frame(ChunkChoice(delta=Delta(), finish_reason=reason))


class CompletionChunks(_Frames):
    """The frames of a streamed completion; `created` in Unix seconds."""

    __slots__ = ()

    def __init__(
        self,
        id: str,  # noqa: A002 - OpenAI's name
        created: int,
        model: str,
        *,
        include_usage: bool = False,
        system_fingerprint: str | None = None,
    ) -> None:
        """`include_usage` as the request's `stream_options` say."""
        head = CompletionChunk(id=id, created=created, model=model, system_fingerprint=system_fingerprint)
        super().__init__(head, TextChoice(text=_MARK, finish_reason=None), include_usage=include_usage)

    def role(self) -> bytes:
        """Nothing: a completion's stream begins with its text."""
        return b""

    def finish(self, reason: FinishReason) -> bytes:
        """The frame that ends the text."""
        return self._frame(TextChoice(text="", finish_reason=reason))


class PassedOn:
    """The frames of an answer that comes as frames already."""

    __slots__ = ()

    def role(self) -> bytes:
        """Nothing: theirs will come."""
        return b""

    def delta(self, text: bytes) -> bytes:
        """The frames, as they came."""
        return text

    def end(self, reason: FinishReason, usage: Usage, times: bytes) -> bytes:  # noqa: ARG002 - the interface's
        """Nothing: their end has come."""
        return b""


def error_event(error: ApiError) -> bytes:
    """The last frame of a stream that failed."""
    return b"data: " + _one_line(error_body(error)) + b"\n\n"


def comment(text: str) -> bytes:
    """A frame that clients ignore, such as `: keepalive`; raises `ValueError` if `text` is not one line."""
    if len(text.splitlines()) > 1 or text != text.rstrip("\r\n"):
        raise ValueError(f"a comment must be one line, got {text!r}")
    return f": {text}\n\n".encode()


def _event(chunk: ChatCompletionChunk | CompletionChunk) -> bytes:
    return b"data: " + _one_line(_ENCODER.encode(chunk)) + b"\n\n"


def _one_line(encoded: bytes) -> bytes:
    """JSON without any character that some client takes for the end of a line."""
    if not encoded.isascii():
        for end, escape in _LINE_ENDS:
            encoded = encoded.replace(end, escape)
    return encoded
