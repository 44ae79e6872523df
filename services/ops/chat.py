"""`convoy chat`: a conversation in the terminal, streamed over SSE through Envoy."""

# ruff: noqa: T201 - a conversation is printed
from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_CONNECT_SECONDS = 5
_OK = 200
_UNAUTHORIZED = 401

# Control characters from a model must not steer the terminal; line break and tab stay.
_UNPRINTABLE = {code: None for code in (*range(32), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}

_HELP = "Ctrl-C stops an answer; /reset forgets the conversation; /exit or Ctrl-D leaves."


class ChatError(Exception):
    """An answer that failed, as one line."""


@dataclass
class Conversation:
    """The messages so far and how to ask for the next one."""

    url: str
    options: dict[str, Any]
    system: str = ""
    key: str = field(default="", repr=False)
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begins with the system message."""
        self.reset()

    def reset(self) -> None:
        """Forgets all but the system message."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, text: str, write: Callable[[str], None]) -> None:
        """Sends a message and writes the answer as it comes; raises `ChatError`, which leaves the conversation as it was.

        KeyboardInterrupt closes the connection, by which the server stops generating; what had come by then is remembered.
        """
        pieces: list[str] = []
        asked = [*self.messages, {"role": "user", "content": text}]

        async def run() -> None:
            async for piece in _stream(self.url, {**self.options, "messages": asked, "stream": True}, self.key):
                pieces.append(piece)
                write(piece.translate(_UNPRINTABLE))

        try:
            asyncio.run(run())
        finally:
            if pieces:
                self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]


def converse(conversation: Conversation) -> int:
    """Prompts and answers until the user leaves; without a terminal one message per line of stdin. Returns the exit code."""
    return _interactive(conversation) if sys.stdin.isatty() else _from_lines(conversation)


def _interactive(conversation: Conversation) -> int:
    import readline  # noqa: F401, PLC0415 - gives the prompt its line editing and history

    print(_HELP)
    while True:
        try:
            text = input("\n> ").strip()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:  # most often meant for an answer that ended at that very moment
            print("\n(Ctrl-D leaves)", end="")
            continue
        if text == "/exit":
            return 0
        if text == "/reset":
            conversation.reset()
            print("(forgotten)")
        elif text:
            _answer(conversation, text)


def _answer(conversation: Conversation, text: str) -> bool:
    try:
        conversation.ask(text, lambda piece: print(piece, end="", flush=True))
    except KeyboardInterrupt:
        print(" (stopped)")
        return True
    except ChatError as error:
        print(f"convoy: {error}", file=sys.stderr, flush=True)
        return False
    print(flush=True)
    return True


def _from_lines(conversation: Conversation) -> int:
    answered = [_answer(conversation, line.strip()) for line in sys.stdin if line.strip()]
    return 0 if all(answered) else 1


async def _stream(url: str, body: dict[str, Any], key: str) -> AsyncIterator[str]:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    path = f"{url}/v1/chat/completions"
    try:
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session, session.post(path, json=body) as response:
            if response.status == _UNAUTHORIZED:
                raise ChatError(f"{_server_error(response.status, await response.read())}; give a key: CONVOY_API_KEY=... convoy chat")
            if response.status != _OK:
                raise ChatError(_server_error(response.status, await response.read()))
            async for piece in _pieces(response.content):
                yield piece
    except aiohttp.ClientConnectorError as error:
        raise ChatError(f"nobody answers at {url}; is it up? (convoy up)") from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ChatError(f"the connection broke before the answer was complete ({type(error).__name__}); ask again") from error


async def _pieces(lines: aiohttp.StreamReader) -> AsyncIterator[str]:
    async for line in lines:
        if not line.startswith(b"data:"):
            continue  # keep-alive comments and the blank lines between events
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        event = msgspec.json.decode(data)
        if "error" in event:
            raise ChatError(_message(event["error"]))
        for choice in event["choices"]:
            if piece := choice["delta"].get("content"):
                yield piece
    raise ChatError("the answer broke off before its end; ask again")


def _server_error(status: int, body: bytes) -> str:
    try:
        return f"{_message(msgspec.json.decode(body)['error'])} (status {status})"
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"the server answered status {status}, not in OpenAI's form; is this address Convoy's?"


def _message(error: dict[str, Any]) -> str:
    return " ".join(str(error.get("message", error)).split())
