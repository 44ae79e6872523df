"""Texts of users in what passes, for traces alone, and read only where an operator has switched that on."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

_DATA = b"data:"


class _Message(Struct):
    role: str = "assistant"
    content: str | list[dict[str, Any] | str] | None = None


class _Asked(Struct):
    messages: list[_Message] = []
    prompt: str | list[Any] | None = None


class _Choice(Struct):
    index: int = 0
    message: _Message | None = None
    delta: _Message | None = None
    text: str | None = None


class _Answer(Struct):
    choices: list[_Choice] = []


def conversation(body: bytes) -> list[dict[str, Any]]:
    """What a body asks, as messages; empty where it has another form than is known here."""
    try:
        asked = msgspec.json.decode(body, type=_Asked)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
    if asked.prompt is None:
        return [{"role": message.role, "content": message.content} for message in asked.messages]
    return [{"role": "user", "content": asked.prompt if isinstance(asked.prompt, str) else f"{len(asked.prompt)} tokens or prompts"}]


def answer_text(answer: bytes, *, is_stream: bool) -> str:
    """The text of an answer's first choice, as far as it has one."""
    parts = [line[len(_DATA) :] for line in answer.splitlines() if line.startswith(_DATA)] if is_stream else [answer]
    return "".join(_text(part) for part in parts)


def _text(part: bytes) -> str:
    try:
        choices = msgspec.json.decode(part, type=_Answer).choices
    except (msgspec.DecodeError, UnicodeDecodeError):  # the end's mark, or an error
        return ""
    choice = next((choice for choice in choices if choice.index == 0), _Choice())
    message = choice.message or choice.delta
    content = message.content if message else choice.text
    return content if isinstance(content, str) else ""
