"""What a pod reads of a request that it passes on: which model, whether a stream, how long. All else is the upstream's to judge."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from services.openai.errors import InvalidJson, InvalidValue, MissingParameter


class ForwardedBody(Struct, frozen=True):
    """The part of a body that matters here; `stream` may be null, as OpenAI allows."""

    model: str | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None

    @property
    def longest(self) -> int | None:
        """Tokens of the answer at most, if it says."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


_BODY = msgspec.json.Decoder(ForwardedBody)
_FIELDS = msgspec.json.Decoder(dict[str, Raw])


def decode(body: bytes) -> ForwardedBody:
    """Raises `InvalidValue` or `InvalidJson`."""
    try:
        return _BODY.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidValue(f"The body is not as it should be: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJson(f"The body is not JSON: {error}") from error


def with_model(body: bytes, model: str) -> bytes:
    """The body with a `model`, all other values byte for byte as they were."""
    return msgspec.json.encode({"model": model} | {name: value for name, value in _FIELDS.decode(body).items() if name != "model"})


def conversation_of(body: bytes) -> bytes:
    """A body of POST /chat, short or long, as one of chat completions. Raises `InvalidValue`, `MissingParameter` or `InvalidJson`."""
    decode(body)
    fields: dict[str, Any] = dict(_FIELDS.decode(body))
    if "messages" in fields:
        if "message" in fields:
            raise InvalidValue("message and messages must not be given together.", param="messages")
        return body
    if "message" not in fields:
        raise MissingParameter("message is required: a string, or messages as in chat completions.", param="message")
    system = [{"role": "system", "content": fields.pop("system")}] if "system" in fields else []
    fields["messages"] = [*system, {"role": "user", "content": fields.pop("message")}]
    return msgspec.json.encode(fields)
