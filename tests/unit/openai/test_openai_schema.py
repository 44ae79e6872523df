"""The OpenAPI description: valid, in step with what validates, and with examples that work."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import validate

from services.openai import bodies
from services.openai.requests import decode_chat, decode_completion, decode_short_chat
from services.openai.schema import openapi

DECODERS: dict[str, Any] = {"/v1/chat/completions": decode_chat, "/v1/completions": decode_completion, "/chat": decode_short_chat}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The description of a server that serves `demo`."""
    return openapi("demo")


def test_the_description_is_valid_openapi(document: dict[str, Any]) -> None:
    """Tools that read OpenAPI 3.1 can read it, and JSON carries it unchanged."""
    validate(document)
    assert json.loads(json.dumps(document)) == document


def test_every_endpoint_is_described(document: dict[str, Any]) -> None:
    """What Swagger UI lists is what the server answers."""
    assert set(document["paths"]) == {
        *DECODERS, "/v1/models", "/v1/models/{id}", "/health", "/healthz", "/livez", "/readyz", "/metrics",
    }  # fmt: skip


@pytest.mark.parametrize("path", DECODERS)
def test_every_example_is_a_request_that_works(document: dict[str, Any], path: str) -> None:
    """`Try it out` sends a body that the server takes."""
    examples = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert examples
    for example in examples.values():
        DECODERS[path](json.dumps(example["value"]).encode())


def test_the_first_example_is_the_one_of_the_readme(document: dict[str, Any]) -> None:
    """Swagger UI opens with the prompt that the README shows."""
    examples = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert next(iter(examples.values()))["value"]["messages"][0]["content"] == "Hello! Tell me about distributed systems."


@pytest.mark.parametrize("kind", [bodies.ChatCompletionBody, bodies.ShortChatBody, bodies.CompletionBody])
def test_parameters_come_from_the_types_that_validate(document: dict[str, Any], kind: Any) -> None:
    """Every field that is read is described, and nothing else is allowed."""
    schema = document["components"]["schemas"][kind.__name__]
    assert set(schema["properties"]) == {field.encode_name for field in msgspec.structs.fields(kind)}
    assert schema["additionalProperties"] is False
    assert schema["properties"]["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}


def test_errors_are_described(document: dict[str, Any]) -> None:
    """A client generator learns the error body and `Retry-After`."""
    answers = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"200", "400", "413", "415", "429", "500", "503", "504"} <= set(answers)
    assert "Retry-After" in answers["429"]["headers"]
    assert answers["400"]["content"]["application/json"]["example"]["error"]["code"] == "invalid_value"


def test_what_is_always_sent_is_required_in_answers(document: dict[str, Any]) -> None:
    """Generated clients may rely on the keys of an answer; a chunk's usage and delta are optional."""
    schemas = document["components"]["schemas"]
    assert set(schemas["ChatCompletion"]["required"]) == set(schemas["ChatCompletion"]["properties"])
    assert "usage" not in schemas["ChatCompletionChunk"]["required"]
    assert schemas["Delta"]["required"] == []
