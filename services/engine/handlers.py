"""One short coroutine per endpoint: parse, prepare, admit, generate, encode."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from services.engine.entrance import ask_of, check_taken, exchange_of, in_time
from services.engine.gauges import read_off
from services.engine.keys import CONCURRENCY, GENERATOR, HEALTH, POD, RUNS, WILL
from services.engine.reading import decoded_of, read_body
from services.engine.streaming import stream
from services.engine.telling import Asked, chat_messages, prompt_message
from services.openai import requests, responses
from services.openai.chunks import ChatChunks, CompletionChunks
from services.openai.errors import ModelNotFound
from services.openai.schema import openapi
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.engine.admission import Ask
    from services.engine.exchange import Exchange
    from services.engine.runs import Run
    from services.engine.token_generator import Prepared
    from services.openai.requests import ChatRequest, CompletionRequest

log = get_logger()

_JSON = "application/json"


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    return await in_time(request, partial(_chat, decode=requests.decode_chat))


async def short_chat(request: web.Request) -> web.StreamResponse:
    """POST /chat: the short form of chat completions."""
    return await in_time(request, partial(_chat, decode=requests.decode_short_chat))


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    return await in_time(request, _completion)


async def _completion(request: web.Request) -> web.StreamResponse:
    body = await read_body(request)
    decoded = await decoded_of(body, requests.decode_completion)
    exchange = check_taken(request, decoded.model)
    prepared = await request.app[GENERATOR].prepare_completion(exchange.request_id, decoded, len(body), _end_of(exchange))
    ask = _ask(request, body, decoded, prepared)
    del body, decoded  # it may wait for long, and its tokens are all that is needed
    return await _generate(request, prepared, ask)


async def _chat(request: web.Request, *, decode: Callable[[bytes], ChatRequest]) -> web.StreamResponse:
    body = await read_body(request)
    decoded = await decoded_of(body, decode)
    exchange = check_taken(request, decoded.model)
    prepared = await request.app[GENERATOR].prepare_chat(exchange.request_id, decoded, len(body), _end_of(exchange))
    ask = _ask(request, body, decoded, prepared)
    del body, decoded
    return await _generate(request, prepared, ask)


def _end_of(exchange: Exchange) -> float | None:
    return exchange.deadline.at if exchange.deadline is not None else None


def _ask(request: web.Request, body: bytes, decoded: ChatRequest | CompletionRequest, prepared: Prepared) -> Ask:
    """What is asked of admission; notes in the exchange what is asked of the model."""
    pod, exchange, options = request.app[POD], exchange_of(request), decoded.options
    is_chat = isinstance(decoded, requests.ChatRequest)
    operation = "chat" if is_chat else "text_completion"
    asked = Asked(operation, pod.model, prepared, stream=options.stream, include_usage=options.include_usage)
    if pod.settings.otel_instrumentation_genai_capture_message_content:
        asked.input_messages = chat_messages(decoded.messages) if is_chat else prompt_message(decoded.prompt)  # type: ignore[union-attr]
    if pod.settings.log_prompts:
        log.info("prompt", request_id=exchange.request_id, prompt=decoded.messages if is_chat else decoded.prompt)  # type: ignore[union-attr]
    exchange.asked = asked
    return ask_of(request, prepared, body, is_exact=options.ignore_eos and not options.stop)


async def _generate(request: web.Request, prepared: Prepared, ask: Ask) -> web.StreamResponse:
    """Runs a prepared request and answers it."""
    app, exchange = request.app, exchange_of(request)
    async with app[CONCURRENCY].held(exchange.client):
        run = exchange.run = await app[RUNS].start(prepared, ask)
        return await _answer(request, exchange, run)


async def _answer(request: web.Request, exchange: Exchange, run: Run) -> web.StreamResponse:
    """A run's answer, whole or as a stream."""
    pod, asked, created = request.app[POD], exchange.asked, int(time.time())
    assert asked is not None
    is_chat = asked.operation == "chat"
    subscription = run.subscribe()
    try:
        if asked.stream:
            kind = ChatChunks if is_chat else CompletionChunks
            chunks = kind(id=asked.answer_id, created=created, model=pod.model, include_usage=asked.include_usage)
            return await stream(request, exchange, subscription, chunks, pod.settings.keepalive_seconds)
        text = await subscription.whole()
        if pod.settings.log_prompts:
            log.info("answer", request_id=exchange.request_id, answer=text)
        encode = responses.chat_completion if is_chat else responses.text_completion
        body = _whole(partial(encode, id=asked.answer_id, created=created, model=pod.model), run, text)
        return web.Response(body=body, content_type=_JSON)
    finally:
        subscription.close()


def _whole(encode: Callable[..., bytes], run: Run, text: str) -> bytes:
    usage = responses.count_usage(run.num_prompt_tokens, run.num_tokens, run.num_cached_tokens)
    return encode(text=text, finish_reason=run.finish_reason, usage=usage)


async def models(request: web.Request) -> web.Response:
    """GET /v1/models: those that the client may use."""
    pod = request.app[POD]
    served = [(pod.model, pod.created)] if exchange_of(request).client.may_use(pod.model) else []
    return web.Response(body=responses.model_list(served), content_type=_JSON)


async def model(request: web.Request) -> web.Response:
    """GET /v1/models/{id}; the id may contain slashes, escaped or not. What the client may not use is not there for it."""
    pod, asked = request.app[POD], request.match_info["id"]
    is_there = exchange_of(request).client.may_use(pod.model)
    if asked != pod.model or not is_there:
        raise ModelNotFound(f"model {asked[:200]!r} is not served here" + (f"; {pod.model!r} is" if is_there else ""), param="model")
    return web.Response(body=responses.model_object(pod.model, pod.created), content_type=_JSON)


async def healthz(_: web.Request) -> web.Response:
    """GET /healthz and /livez: the event loop answers."""
    return web.Response(body=b'{"ok": true}', content_type=_JSON)


async def readyz(request: web.Request) -> web.Response:
    """GET /readyz: whether requests are taken, by whom, and if not, why."""
    status, body = request.app[HEALTH].readiness(request.app[POD].name)
    return web.Response(status=status, body=msgspec.json.encode(body), content_type=_JSON)


async def drain(request: web.Request) -> web.Response:
    """POST /drain: the pod shall finish what runs and end, as at SIGTERM. Not reachable through the edge."""
    request.app[WILL].drain()
    body = {"pod": request.app[POD].name, "state": "draining"}
    return web.Response(status=202, body=msgspec.json.encode(body), content_type=_JSON)


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics, in Prometheus' text format."""
    return web.Response(body=generate_latest(read_off(request.app).registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def openapi_json(request: web.Request) -> web.Response:
    """GET /openapi.json, made from the types that validate."""
    return web.Response(body=msgspec.json.encode(openapi(request.app[POD].model)), content_type=_JSON)
