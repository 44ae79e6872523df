"""The OpenAPI description of the API, made from the types that validate requests and encode answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import msgspec

from services.openai import bodies, chunks, errors, responses

if TYPE_CHECKING:
    from msgspec import Struct

_REF = "#/components/schemas/{name}"
_JSON, _EVENTS = "application/json", "text/event-stream"
_PROMPT = "Hello! Tell me about distributed systems."
_SAMPLING = {"temperature": 0.7, "max_tokens": 150}
_CREATED = 1_750_000_000
_TYPES: tuple[Any, ...] = (
    bodies.ChatCompletionBody,
    bodies.ShortChatBody,
    bodies.CompletionBody,
    responses.ChatCompletion,
    responses.Completion,
    responses.Model,
    responses.ModelList,
    chunks.ChatCompletionChunk,
    chunks.CompletionChunk,
    errors.ErrorBody,
)
_REFUSALS = {
    "400": (errors.InvalidValue, "temperature must be a number from 0 to 2, got 3.", "The request cannot be carried out as it is."),
    "401": (errors.InvalidApiKey, "This API key is not known here.", "No key, or none that is known; only where clients are configured."),
    "403": (errors.Forbidden, "This client may not use model 'other'; it may use: 'demo'.", "The client may not do this."),
    "413": (errors.RequestTooLarge, "The body is larger than this server takes.", "The body is too large."),
    "415": (errors.UnsupportedMediaType, "The body must be application/json.", "The body is not plain JSON."),
    "429": (errors.QueueFull, "The queue is full.", "No room now; `Retry-After` says when to try again."),
    "500": (errors.EngineError, "The engine broke on this request.", "The engine broke on this request."),
    "503": (errors.NotReady, "The model is still loading.", "No engine is ready."),
    "504": (errors.DeadlineExceeded, "The request's deadline passed.", "The request took too long."),
}


def openapi(model_name: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document as plain JSON; its examples name `model_name`."""
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Convoy",
            "version": "1",
            "description": "Language models behind an API that OpenAI's clients speak.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        # Swagger UI sends to the address that it came from.
        "servers": [{"url": "/"}],
        "tags": [{"name": "Generate"}, {"name": "Models"}, {"name": "Operate"}],
        # A key is needed only where clients are configured.
        "security": [{}, {"key": []}],
        "paths": _generate_paths(model_name) | _model_paths(model_name) | _operate_paths(),
        "components": {"schemas": _schemas(), "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }
    # Through JSON, because msgspec gives defaults and tuples as Python's own objects.
    return cast("dict[str, Any]", msgspec.json.decode(msgspec.json.encode(document)))


def _generate_paths(model: str) -> dict[str, Any]:
    usage = responses.count_usage(24, 42)
    answer = "A distributed system is several computers that work together as one."
    chat = responses.ChatCompletion(
        id="chatcmpl-1",
        created=_CREATED,
        model=model,
        choices=(responses.ChatChoice(message=responses.AnswerMessage(content=answer), finish_reason="stop"),),
        usage=usage,
    )
    text = responses.Completion(
        id="cmpl-1", created=_CREATED, model=model, choices=(responses.TextChoice(text=answer, finish_reason="stop"),), usage=usage
    )
    chat_frames = chunks.ChatChunks("chatcmpl-1", _CREATED, model)
    text_frames = chunks.CompletionChunks("cmpl-1", _CREATED, model)
    messages = {"messages": [{"role": "user", "content": _PROMPT}], **_SAMPLING}
    short, long = _ref(bodies.ShortChatBody), _ref(bodies.ChatCompletionBody)
    return {
        "/v1/chat/completions": _post(
            "Continue a conversation", long, {"answer": messages, "stream": messages | {"stream": True}}, _answers(chat, chat_frames)
        ),
        "/v1/completions": _post(
            "Continue a text",
            _ref(bodies.CompletionBody),
            {"answer": {"prompt": "A distributed system is", **_SAMPLING}},
            _answers(text, text_frames),
        ),
        "/chat": _post(
            "Say one message, or continue a conversation",
            {"anyOf": [short, long]},
            {"message": {"message": _PROMPT, **_SAMPLING}, "conversation": messages},
            _answers(chat, chat_frames),
        ),
    }


def _post(summary: str, schema: dict[str, Any], examples: dict[str, Any], answers: dict[str, Any]) -> dict[str, Any]:
    content = {"schema": schema, "examples": {name: {"value": value} for name, value in examples.items()}}
    return {
        "post": {
            "tags": ["Generate"],
            "summary": summary,
            "requestBody": {"required": True, "content": {_JSON: content}},
            "responses": {"200": answers, **{status: _refusal(*refusal) for status, refusal in _REFUSALS.items()}},
        }
    }


def _answers(whole: responses.ChatCompletion | responses.Completion, frames: chunks.ChatChunks | chunks.CompletionChunks) -> dict[str, Any]:
    """The 200 answer of a generating endpoint: JSON, or with `stream: true` server-sent events of JSON, each after `data: `."""
    is_chat = isinstance(whole, responses.ChatCompletion)
    stream = frames.role() + frames.delta("A distributed") + frames.delta(" system") + frames.finish("stop") + chunks.DONE
    chunk = _ref(chunks.ChatCompletionChunk if is_chat else chunks.CompletionChunk)
    events = {
        "type": "string",
        "description": "Events `data: {chunk}`, then `data: [DONE]`.",
        "contentMediaType": _EVENTS,
        # Not part of a text's schema, but where a reader looks for what an event holds.
        "x-event-schema": chunk,
    }
    return {
        "description": "The answer; with `stream: true` token by token.",
        "content": {
            _JSON: {"schema": _ref(type(whole)), "example": msgspec.to_builtins(whole)},
            _EVENTS: {"schema": events, "example": stream.decode()},
        },
    }


def _refusal(error: type[errors.ApiError], message: str, description: str) -> dict[str, Any]:
    param = "temperature" if error is errors.InvalidValue else None
    example = error(message, param=param).body()
    refusal: dict[str, Any] = {"description": description, "content": {_JSON: {"schema": _ref(errors.ErrorBody), "example": example}}}
    if error is errors.QueueFull:
        refusal["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}}}
    return refusal


def _model_paths(model: str) -> dict[str, Any]:
    one = responses.Model(id=model, created=_CREATED)
    name = {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "Name of the model; a slash in it may be escaped (%2F) or not.",
        "schema": {"type": "string"},
        "example": model,
    }
    unknown = _refusal(errors.ModelNotFound, "The model other does not exist.", "No such model.")
    return {
        "/v1/models": {"get": _get("Models", "The served models", {"200": _example(responses.ModelList(data=[one]))})},
        "/v1/models/{id}": {"get": {**_get("Models", "One model", {"200": _example(one), "404": unknown}), "parameters": [name]}},
    }


def _operate_paths() -> dict[str, Any]:
    state = {"description": "Yes.", "content": {_JSON: {"schema": {"type": "object"}}}}
    no = {"description": "No: loading or draining.", "content": {_JSON: {"schema": {"type": "object"}}}}
    ok = {"description": "Yes.", "content": {_JSON: {"schema": {"type": "object"}, "example": {"ok": True}}}}
    metrics = {"description": "Metrics in Prometheus' format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {
        "/health": {"get": _get("Operate", "Is the service alive?", {"200": ok})},
        "/healthz": {"get": _get("Operate", "Is the service alive? In the shortest form", {"200": ok})},
        "/livez": {"get": _get("Operate", "Is the process alive?", {"200": state})},
        "/readyz": {"get": _get("Operate", "Does it take requests?", {"200": state, "503": no})},
        "/metrics": {"get": _get("Operate", "Metrics", {"200": metrics})},
    }


def _get(tag: str, summary: str, answers: dict[str, Any]) -> dict[str, Any]:
    return {"tags": [tag], "summary": summary, "responses": answers}


def _example(value: Struct) -> dict[str, Any]:
    return {"description": "The answer.", "content": {_JSON: {"schema": _ref(type(value)), "example": msgspec.to_builtins(value)}}}


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}


def _schemas() -> dict[str, Any]:
    schemas = msgspec.json.schema_components(_TYPES, ref_template=_REF)[1]
    for schema in schemas.values():
        # A default of an answer's field is what is sent, so the field is always there; a request's is what may be left out.
        if schema.get("additionalProperties") is not False:
            sent = {name: {key: value for key, value in field.items() if key != "default"} for name, field in schema["properties"].items()}
            always = [name for name, field in schema["properties"].items() if "default" in field or name in schema.get("required", ())]
            schema.update(properties=sent, required=always)
    return schemas
