"""Bodies that are good but for one field, and the errors that bad ones are answered with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.openai.errors import ApiError
from services.openai.requests import decode_chat, decode_completion, decode_short_chat

MINIMAL: dict[Any, dict[str, Any]] = {
    decode_chat: {"messages": [{"role": "user", "content": "x"}]},
    decode_short_chat: {"message": "x"},
    decode_completion: {"prompt": "x"},
}


def refused(body: bytes, decode: Any = decode_chat) -> ApiError:
    """The error that a body is answered with."""
    with pytest.raises(ApiError) as caught:
        decode(body)
    assert caught.value.status == 400
    return caught.value


def with_field(field: str, value: object, decode: Any = decode_chat) -> bytes:
    """A body that is good but for one field."""
    return json.dumps(MINIMAL[decode] | {field: value}).encode()
