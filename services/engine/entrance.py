"""What is asked of every request that wants an answer generated, whatever engine does it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from services.engine.admission import Ask
from services.engine.client import priority_of
from services.engine.deadlines import attempt_of, deadline_of
from services.engine.keys import HEALTH, POD
from services.engine.middleware import EXCHANGE
from services.openai.errors import ModelNotFound

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import web

    from services.engine.backends import AnyPrepared
    from services.engine.exchange import Exchange

# What a waiting request holds beside its tokens or its body: connection, headers, task (measured: 20 KB).
_REQUEST_BYTES = 20 * 1024


async def in_time(request: web.Request, answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    """The answer, or `DeadlineExceeded` if the request has a deadline and it passes before the first byte."""
    exchange, settings = exchange_of(request), request.app[POD].settings
    deadline = exchange.deadline = deadline_of(
        request.headers, exchange, settings.request_timeout_seconds, settings.first_token_timeout_seconds
    )
    if deadline is None:
        return await answer(request)
    with deadline:
        return await answer(request)


def check_taken(request: web.Request, model: str | None) -> Exchange:
    """The exchange of a request that this pod takes now; refuses the others. `model` None is the served one."""
    pod, exchange = request.app[POD], exchange_of(request)
    exchange.client.check_model(model or pod.model)
    if model not in {None, pod.model}:
        hint = f"; {pod.model!r} is, also when left out" if exchange.client.may_use(pod.model) else ""
        raise ModelNotFound(f"model {str(model)[:200]!r} is not served here{hint}", param="model")
    request.app[HEALTH].check_ready()
    if exchange.deadline is not None:
        exchange.deadline.check()
    return exchange


def exchange_of(request: web.Request) -> Exchange:
    """What becomes of it."""
    exchange: Exchange = request[EXCHANGE]
    return exchange


def ask_of(request: web.Request, prepared: AnyPrepared, body: bytes, *, is_exact: bool) -> Ask:
    """What is asked of admission; `is_exact`: the answer will have as many tokens as it may."""
    exchange = exchange_of(request)
    return Ask(
        num_prompt_tokens=prepared.num_prompt_tokens,
        max_tokens=prepared.max_tokens,
        is_exact=is_exact,
        num_bytes=_REQUEST_BYTES + prepared.num_bytes,
        client=exchange.client.id,
        priority=priority_of(request.headers, exchange.client),
        deadline=prepared.deadline,
        fingerprint=_fingerprint(exchange.client.id, body),
        attempt=attempt_of(request.headers),
    )


def _fingerprint(client: str, body: bytes) -> int:
    """The same for the same request of the same client, on every pod; 0 is nobody's."""
    return int.from_bytes(hashlib.blake2b(body, digest_size=8, key=client.encode()[:64]).digest(), "big") >> 1 or 1
