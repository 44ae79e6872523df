"""A client that counts for itself: asks in an open loop (it does not wait for answers before it asks on) and says what became of each."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Mapping

DONE = b"data: [DONE]\n\n"
BROKEN = 0
"""The status of a request whose connection broke, before or after its headers."""


@dataclass(frozen=True)
class Answer:
    """What a client got. `is_whole`: a JSON answer that can be read, or a stream to its [DONE]; everything else is a lost request."""

    status: int
    attempts: str
    pod: str
    seconds: float
    code: str
    is_whole: bool
    is_stream: bool
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Asking:
    """One kind of request: where, and how much of an answer."""

    session: aiohttp.ClientSession
    url: str
    tokens: int = 20
    prompt: str = "hi"
    seconds: float = 60.0
    """A request that takes longer counts as broken: a drill must end."""

    async def ask(self, *, is_stream: bool = False, headers: Mapping[str, str] | None = None) -> Answer:
        """One request and its answer."""
        message = {"role": "user", "content": self.prompt}
        body = {"messages": [message], "max_tokens": self.tokens, "ignore_eos": True, "stream": is_stream}
        begun, status, got, read = time.monotonic(), BROKEN, dict[str, str](), b""
        timeout = aiohttp.ClientTimeout(total=self.seconds)
        try:
            async with self.session.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=timeout) as response:
                got = {name.lower(): value for name, value in response.headers.items()}
                read = await response.read()
                status = response.status
        except (aiohttp.ClientError, asyncio.TimeoutError):  # what had come of it is no answer
            pass
        seconds = time.monotonic() - begun
        is_whole = status == 200 and (read.endswith(DONE) if is_stream else "choices" in _fields(read))
        code = "" if is_whole else _code(read)
        return Answer(
            status, got.get("x-convoy-attempts", "-"), got.get("x-convoy-pod", "-"), seconds, code, is_whole, is_stream, got, read
        )

    async def open_loop(self, count: int, per_second: float) -> list[Answer]:
        """So many requests at a steady rate, every other one a stream."""
        begun = time.monotonic()
        asked = []
        for number in range(count):
            await asyncio.sleep(max(0.0, begun + number / per_second - time.monotonic()))
            asked.append(asyncio.create_task(self.ask(is_stream=bool(number % 2))))
        return await asyncio.gather(*asked)


def told(answers: list[Answer]) -> str:
    """The answers in one line: lost, asked twice, by status and code."""
    lost = [answer for answer in answers if not answer.is_whole]
    kinds = sorted({f"{answer.status} {answer.code}" for answer in lost})
    twice = sum(answer.attempts == "2" for answer in answers)
    longest = max((answer.seconds for answer in answers), default=0.0)
    return f"{len(answers)} requests, {len(lost)} lost {kinds}, {twice} asked twice, longest {longest:.1f} s"


def show(line: str) -> None:
    """Figures of a drill, for `pytest -s`."""
    print(line)  # noqa: T201 - whoever runs a drill by hand wants to read them


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _code(body: bytes) -> str:
    """The code of an error, in a JSON answer or in the last event of a stream."""
    last = body.strip().rpartition(b"\n\n")[2].removeprefix(b"data: ")
    error = _fields(last).get("error") or {}
    return str(error.get("code", ""))
