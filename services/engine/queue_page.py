"""GET /v1/queue: who runs and who waits in this pod, and how long the next one would wait."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from services.engine.keys import ADMISSION, POD, PROMISES

if TYPE_CHECKING:
    from services.engine.admission import Admission

# Of a long queue the first ones are what somebody looks at.
_MAX_SHOWN = 100


async def queue(request: web.Request) -> web.Response:
    """The queue as JSON; the edge lets only operators here. Durations in seconds, null where nobody can know."""
    promises, now = request.app[PROMISES], time.monotonic()
    line = {"told_to_return": promises.num_open, "line": _rounded(max(0.0, promises.until - now))}
    shown = {"pod": request.app[POD].name, "all_pods": line, **describe(request.app[ADMISSION], now)}
    return web.Response(body=msgspec.json.encode(shown), content_type="application/json")


def describe(admission: Admission, now: float) -> dict[str, Any]:
    """What is shown of the queue."""
    limits, queue = admission.limits, admission.queue
    waiting = [
        {
            "place": place,
            "priority": ticket.ask.priority,
            "client": ticket.ask.client,
            "prompt_tokens": ticket.ask.num_prompt_tokens,
            "max_tokens": ticket.ask.max_tokens,
            "waited": round(now - ticket.queued_at, 3),
            "predicted_wait": _rounded(ticket.predicted_wait),
            "predicted_duration": _rounded(ticket.predicted_seconds),
        }
        for place, ticket in enumerate(queue.in_order(), 1)
        if place <= _MAX_SHOWN
    ]
    return {
        "slots": limits.slots,
        "running": admission.running,
        "capacity": limits.capacity,
        "waiting": len(queue),
        "waiting_bytes": queue.num_bytes,
        "wait_of_the_next": _rounded(admission.wait_seconds(now)),
        "by_client": [
            {"priority": priority, "client": client, "waiting": count} for (priority, client), count in sorted(queue.places().items())
        ],
        "requests": waiting,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
