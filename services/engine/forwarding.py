"""The endpoints of a remote engine: the same way in as for a local one, and the upstream's own bytes out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from services.engine.backends.remote import bodies
from services.engine.backends.remote.contents import conversation
from services.engine.entrance import ask_of, check_taken, in_time
from services.engine.keys import CONCURRENCY, GENERATOR, POD, RUNS
from services.engine.reading import decoded_of, read_body
from services.engine.streaming import stream
from services.engine.telling import Asked, chat_messages
from services.openai.chunks import PassedOn
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from services.engine.backends.remote.generator import Forwarded

log = get_logger()

_CHAT, _COMPLETIONS = "/chat/completions", "/completions"
_OPERATIONS = {_CHAT: "chat", _COMPLETIONS: "text_completion"}


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    return await in_time(request, partial(_forward, path=_CHAT))


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    return await in_time(request, partial(_forward, path=_COMPLETIONS))


async def short_chat(request: web.Request) -> web.StreamResponse:
    """POST /chat: the short form of chat completions, which the upstream gets in its long form."""
    return await in_time(request, partial(_forward, path=_CHAT, is_short=True))


async def _forward(request: web.Request, *, path: str, is_short: bool = False) -> web.StreamResponse:
    pod, body = request.app[POD], await read_body(request)
    if is_short:
        body = await decoded_of(body, bodies.conversation_of)
    asked = await decoded_of(body, bodies.decode)
    exchange = check_taken(request, asked.model)
    if asked.model is None:
        body = bodies.with_model(body, pod.model)
    deadline = exchange.deadline.at if exchange.deadline is not None else None
    prepared: Forwarded = request.app[GENERATOR].prepare(exchange.request_id, path, body, asked, deadline)
    exchange.asked = Asked(_OPERATIONS[path], pod.model, prepared, stream=prepared.is_stream)
    exchange.asked.answer_id = ""  # the upstream gives it, and nobody reads it here
    if pod.settings.otel_instrumentation_genai_capture_message_content:
        exchange.asked.input_messages = chat_messages(conversation(body))
    if pod.settings.log_prompts:
        log.info("prompt", request_id=exchange.request_id, prompt=body.decode(errors="replace"))
    ask = ask_of(request, prepared, prepared.body, is_exact=False)
    async with request.app[CONCURRENCY].held(exchange.client):
        run = exchange.run = await request.app[RUNS].start(prepared, ask)
        subscription = run.subscribe()
        try:
            if prepared.is_stream:
                return await stream(request, exchange, subscription, PassedOn(), pod.settings.keepalive_seconds)
            body = await subscription.whole()
            if pod.settings.log_prompts:
                log.info("answer", request_id=exchange.request_id, answer=body.decode(errors="replace"))
            return web.Response(body=body, content_type="application/json")
        finally:
            subscription.close()
