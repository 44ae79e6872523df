"""What a trace tells of a generation, put together from what handlers and runs know."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from services.openai.responses import new_id
from services.telemetry.spans import Generated

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.engine.backends import AnyPrepared
    from services.engine.runs import Run


class Asked:
    """What a request asks of the model, from the moment it asks for a slot."""

    def __init__(self, operation: str, model: str, prepared: AnyPrepared, *, stream: bool, include_usage: bool = False) -> None:
        """`operation` by OpenTelemetry's names: `chat` or `text_completion`."""
        self.operation = operation
        self.model = model
        self.answer_id = new_id("chatcmpl" if operation == "chat" else "cmpl")
        self.prepared = prepared
        self.stream = stream
        self.include_usage = include_usage
        self.queued_at = time.monotonic()
        self.input_messages = ""
        """As JSON, if content may be captured."""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.prepared.num_prompt_tokens

    def parameters(self) -> dict[str, Any]:
        """What holds for this request."""
        return self.prepared.parameters() | {"stream": self.stream}


def generated_of(asked: Asked, run: Run | None, at: Callable[[float], int]) -> Generated:
    """`at` makes Unix nanoseconds of times on the clock of `time.monotonic()`. Without a run the request was refused a slot."""
    generated = Generated(
        operation=asked.operation,
        model=asked.model,
        answer_id=asked.answer_id,
        parameters=asked.parameters(),
        num_prompt_tokens=asked.num_prompt_tokens,
        queued_at=at(asked.queued_at),
        input_messages=asked.input_messages,
    )
    if run is None:
        return generated
    return msgspec.structs.replace(
        generated,
        queue_place=run.ticket.place,
        started_at=at(run.started_at),
        first_token_at=at(run.first_token_at),
        num_prompt_tokens=run.num_prompt_tokens,
        ended_at=at(run.last_token_at if run.finish_reason else run.ended_at),
        num_tokens=run.num_tokens,
        finish_reason=run.finish_reason,
        output_messages=_output(run) if asked.input_messages else "",
    )


def chat_messages(messages: list[dict[str, Any]]) -> str:
    """A conversation in the form of `gen_ai.input.messages`: a role and parts each."""
    return msgspec.json.encode([{"role": message.get("role"), "parts": _parts(message)} for message in messages]).decode()


def prompt_message(prompt: str | list[int]) -> str:
    """A completion's prompt in the same form."""
    return chat_messages([{"role": "user", "content": prompt if isinstance(prompt, str) else f"{len(prompt)} token ids"}])


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content") or ""
    texts = [content] if isinstance(content, str) else [part if isinstance(part, str) else part.get("text", "") for part in content]
    return [{"type": "text", "content": text} for text in texts]


def _output(run: Run) -> str:
    text = run.prepared.text_of(run.read(0)[0])
    message = {"role": "assistant", "parts": [{"type": "text", "content": text}], "finish_reason": run.finish_reason}
    return msgspec.json.encode([message]).decode()
