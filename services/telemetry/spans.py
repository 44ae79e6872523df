"""What is told of a request when it is over, and the attributes that its server span gets of it.

Attributes follow OpenTelemetry's conventions for GenAI and HTTP; only what is Convoy's own begins with `convoy.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

PROVIDER = "convoy"


class Process(Struct, frozen=True, kw_only=True):
    """Who sends: the pool as `service.name`, the pod as `service.instance.id`."""

    service: str
    instance: str
    version: str


class Generated(Struct, frozen=True, kw_only=True):
    """What a request asked of the model and what came of it. Times in Unix nanoseconds; 0 is not reached."""

    operation: str
    model: str
    parameters: Mapping[str, Any]
    """By the last part of the attribute's name, `gen_ai.request.<name>`."""
    num_prompt_tokens: int
    queued_at: int
    queue_place: int = 0
    started_at: int = 0
    first_token_at: int = 0
    ended_at: int = 0
    num_tokens: int = 0
    finish_reason: str | None = None
    answer_id: str = ""
    input_messages: str = ""
    output_messages: str = ""
    """Both as JSON in the conventions' form, empty unless content may be captured."""


class Answered(Struct, frozen=True, kw_only=True):
    """What is told of a request when it is over. Times in Unix nanoseconds."""

    method: str
    route: str
    status: int
    request_id: str
    pod: str
    began_at: int
    ended_at: int
    is_cancelled: bool = False
    client: str = ""
    """The id of the client, where the edge knows clients."""
    error_code: str = ""
    error_message: str = ""
    generated: Generated | None = None


def request_attributes(answered: Answered) -> dict[str, Any]:
    """Those of every request."""
    attributes: dict[str, Any] = {
        "http.request.method": answered.method,
        "http.route": answered.route,
        "http.response.status_code": answered.status,
        "convoy.request_id": answered.request_id,
        "convoy.pod": answered.pod,
    }
    if answered.client:
        attributes["convoy.client"] = answered.client
    if answered.error_code:
        attributes["error.type"] = answered.error_code
    return attributes


def generation_attributes(answered: Answered, generated: Generated) -> dict[str, Any]:
    """Those of a request that asked the model."""
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": generated.operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": generated.model,
        "gen_ai.response.model": generated.model,
        "gen_ai.usage.input_tokens": generated.num_prompt_tokens,
        "gen_ai.usage.output_tokens": generated.num_tokens,
    }
    attributes |= {f"gen_ai.request.{name}": value for name, value in generated.parameters.items()}
    if generated.finish_reason:
        attributes["gen_ai.response.finish_reasons"] = [generated.finish_reason]
    if generated.first_token_at:
        attributes["gen_ai.response.time_to_first_chunk"] = (generated.first_token_at - answered.began_at) / 1e9
    texts = {
        "gen_ai.response.id": generated.answer_id,
        "gen_ai.input.messages": generated.input_messages,
        "gen_ai.output.messages": generated.output_messages,
    }
    return attributes | {name: text for name, text in texts.items() if text}
