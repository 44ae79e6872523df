"""Whole answers, judged by the official package's types: nothing missing, nothing that they do not know."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from services.openai import errors, responses

TEXTS = ["", "Hello", 'quotes " and \\', "👩\u200d💻 e\u0301 \u2028 \x00\x1f\r\n", "\U0010ffff"]


def no_extras(value: object) -> None:
    """Fails if a model, at any depth, holds keys that its type does not name."""
    if isinstance(value, BaseModel):
        assert not value.model_extra, value.model_extra
        for name in type(value).model_fields:
            no_extras(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            no_extras(item)


@pytest.mark.parametrize("text", TEXTS)
def test_a_chat_completion_is_what_the_official_client_expects(text: str) -> None:
    """The answer fits OpenAI's type strictly and carries the keys that OpenAI always sends."""
    body = responses.chat_completion(
        id="chatcmpl-1", created=5, model="demo", text=text, finish_reason="length", usage=responses.count_usage(3, 4)
    )
    plain = json.loads(body)
    answer = ChatCompletion.model_validate(plain, strict=True)
    no_extras(answer)
    assert plain["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 4, 7)
    assert (plain["id"], plain["object"], plain["created"], plain["model"]) == ("chatcmpl-1", "chat.completion", 5, "demo")
    assert plain["system_fingerprint"] is None


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_completion_is_what_the_official_client_expects(text: str) -> None:
    """The answer fits OpenAI's type strictly and carries the keys that OpenAI always sends."""
    body = responses.text_completion(
        id="cmpl-1", created=5, model="demo", text=text, finish_reason="stop", usage=responses.count_usage(3, 4), system_fingerprint="f"
    )
    plain = json.loads(body)
    no_extras(Completion.model_validate(plain, strict=True))
    assert plain["choices"] == [{"text": text, "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert (plain["object"], plain["system_fingerprint"]) == ("text_completion", "f")


def test_models_are_listed_as_openai_does() -> None:
    """The list and each model fit OpenAI's types."""
    listed: dict[str, Any] = json.loads(responses.model_list([("org/name", 5), ("demo", 6)]))
    assert listed["object"] == "list"
    assert [Model.model_validate(model, strict=True).id for model in listed["data"]] == ["org/name", "demo"]
    assert json.loads(responses.model_object("demo", 6)) == listed["data"][1]


def test_ids_are_new_each_time() -> None:
    """Two answers never share an id."""
    ids = {responses.new_id("chatcmpl") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(name.startswith("chatcmpl-") for name in ids)


def test_an_error_has_all_four_keys() -> None:
    """Clients read message, type, param and code of every error, null or not."""
    assert json.loads(responses.error_body(errors.QueueFull("Full.", retry_after_seconds=3))) == {
        "error": {"message": "Full.", "type": "rate_limit_error", "param": None, "code": "queue_full"}
    }
