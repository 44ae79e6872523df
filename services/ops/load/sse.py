"""Reads streamed answers by their bytes. An event with text costs one search; only the few others are looked into."""

from __future__ import annotations

import re

import msgspec
from msgspec import Struct

# A quote inside a JSON text has a backslash before it, so these keys cannot be part of what a model said.
_TEXT = re.compile(rb'"(?:content|text|reasoning_content)":\s*"(?!")')
_USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')


class _Error(Struct):
    code: str | int | None = None
    type: str | None = None


class _Answer(Struct):
    """What of a JSON answer, or of an event, tells how it went."""

    choices: list[msgspec.Raw] | None = None
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Answer).decode


def error_code(body: bytes) -> str:
    """The code of an error in OpenAI's form, or its type where it has no code; empty if it is none."""
    try:
        error = _decode(body).error
    except msgspec.DecodeError:
        return ""
    return str(error.code or error.type or "") if error else ""


def is_answer(body: bytes) -> bool:
    """Whether this is a whole JSON answer: it decodes, and has `choices`."""
    try:
        return bool(_decode(body).choices)
    except msgspec.DecodeError:
        return False


def completion_tokens(body: bytes) -> int:
    """Tokens of an answer as its usage tells; 0 if it tells none."""
    found = _USAGE.findall(body)
    return int(found[-1]) if found else 0


class EventReader:
    """Follows one stream. `feed` takes bytes as they come; the attributes say what has come so far."""

    __slots__ = ("_rest", "_told", "code", "has_error", "is_done", "texts")

    def __init__(self) -> None:
        """Nothing has come yet."""
        self.texts = 0
        """Events with text."""
        self.is_done = False
        """Whether `[DONE]` has come."""
        self.has_error = False
        self.code = ""
        """The code of an error event."""
        self._told = 0
        self._rest = b""

    @property
    def tokens(self) -> int:
        """Tokens as the usage tells; where it tells none, events with text."""
        return self._told or self.texts

    @property
    def is_whole(self) -> bool:
        """Whether the stream came to its end."""
        return self.is_done and not self.has_error

    def feed(self, data: bytes) -> int:
        """Takes what has come; how many events with text it completed."""
        if b"\r" in data:
            data = data.replace(b"\r", b"")  # JSON escapes it, so here it only ends lines
        events = (self._rest + data if self._rest else data).split(b"\n\n")
        self._rest = events.pop()
        texts = 0
        for event in events:
            if _TEXT.search(event):
                texts += 1
            elif event:
                self._look_into(event)
        self.texts += texts
        return texts

    def _look_into(self, event: bytes) -> None:
        for line in event.split(b"\n"):
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                self.is_done = True
            elif b'"error"' in data:
                self.has_error, self.code = True, error_code(data)
            elif b'"completion_tokens"' in data:
                self._told = completion_tokens(data)
