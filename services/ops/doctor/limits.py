"""What is too much: of one client, in one body, of all together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from services.ops.doctor.asking import CHAT, bearer
from services.ops.doctor.callers import NO_KEYS
from services.ops.doctor.lane import CLUSTER, MAX_REQUESTS
from services.ops.doctor.rows import failed, ok, unused
from services.ops.doctor.visit import until

if TYPE_CHECKING:
    from services.ops.doctor.asking import Answer
    from services.ops.doctor.rows import Finding
    from services.ops.doctor.visit import Visit

# Answered by Envoy itself, after the limits: no pod hears of it.
_NOTHING = "/v1/doctor"
_DOCTOR_CLASS = "doctor"
_REFUSAL_SECONDS = 5.0
_SURPLUS = 2


async def client_limit(visit: Visit) -> Finding:
    """A client gets what its class says, one more is 429 with the seconds to wait, and after these it is let in again."""
    known = visit.asker.keys
    if known is None:
        return unused(NO_KEYS)
    bucket, headers = _bucket(visit), bearer(known.limited)
    burst, per_second = bucket["max_tokens"], bucket["tokens_per_fill"] / float(bucket["fill_interval"].rstrip("s"))
    began, passed = time.monotonic(), 0
    while (answer := await visit.asker.get(_NOTHING, headers)).status != 429:
        passed += 1
        # What comes back meanwhile may be used, too.
        if passed > burst + 1 + (time.monotonic() - began) * per_second:
            return failed(f"{passed} requests at once were let through; the class {_DOCTOR_CLASS} has a burst of {burst}")
    wait = answer.headers.get("retry-after", "")
    seen = f"{passed} of a burst of {burst}, then {answer}, retry-after {wait or 'missing'}"
    if passed < burst or answer.code != "rate_limit_exceeded" or not wait.isdigit():
        return failed(seen)
    await asyncio.sleep(int(wait))
    again = await visit.asker.get(_NOTHING, headers)
    return ok(f"{seen} s; let in after that") if again.status != 429 else failed(f"{seen} s; refused again after that")


def _bucket(visit: Visit) -> dict[str, Any]:
    """The bucket of the doctor's class, as Envoy's live file has it."""
    options = visit.target.read("xds/limit_client.json")["resources"][0]["typed_config"]
    found: dict[str, Any] = next(
        item["token_bucket"] for item in options["descriptors"] if item["entries"][0].get("value") == _DOCTOR_CLASS
    )
    return found


async def body(visit: Visit) -> Finding:
    """A body over the limit is refused by its announced length, before it is sent."""
    size = visit.target.settings.max_body_bytes + 1
    host, port = visit.asker.address
    lines = [f"POST {CHAT} HTTP/1.1", f"host: {host}:{port}", "content-type: application/json", f"content-length: {size}"]
    lines += [f"{name}: {value}" for name, value in {**visit.asker.user(), **visit.lane.header}.items()]
    visit.asker.num_requests += 1
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode())
        line = await asyncio.wait_for(reader.readline(), _REFUSAL_SECONDS)
        rest = await asyncio.wait_for(reader.read(), _REFUSAL_SECONDS) if b" 413 " in line else b""
    except asyncio.TimeoutError:
        return failed(f"content-length {size} was not refused within {_REFUSAL_SECONDS:g} s: Envoy waits for the body")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    seen = f"content-length {size}: {line.decode(errors='replace').partition(' ')[2].strip()}"
    return (
        ok(f"{seen}, before a byte of it was sent") if b"request_too_large" in rest else failed(f"{seen}, expected 413 request_too_large")
    )


async def circuit(visit: Visit) -> Finding:
    """With as many requests at work as may be, one more is refused at once, and those at work are answered."""
    lane = visit.lane
    lane.break_pods({number: {"failure": "hang"} for number in (1, 2, 3)})
    tasks = [asyncio.create_task(lane.ask(timeout=20)) for _ in range(MAX_REQUESTS + _SURPLUS)]
    try:
        _, is_stuck = await _settled(tasks)
        gauge = f"cluster.{CLUSTER}.circuit_breakers.default.remaining_rq"
        left = (await visit.admin.stats(f"^{gauge}$")).get(gauge)
        lane.break_pods({})
        answers = await asyncio.gather(*tasks)
    finally:
        lane.break_pods({})
        for task in tasks:
            task.cancel()
    return _judge(answers, left, has_refused=is_stuck)


async def _settled(tasks: list[asyncio.Task[Answer]]) -> tuple[int, bool]:
    """Waits until the surplus was answered; how many were, and whether it was just them."""

    async def is_refused() -> bool:
        return sum(task.done() for task in tasks) >= _SURPLUS

    await until(is_refused, _REFUSAL_SECONDS)
    done = sum(task.done() for task in tasks)
    return done, done == _SURPLUS


def _judge(answers: list[Answer], left: int | None, *, has_refused: bool) -> Finding:
    refused = [answer for answer in answers if answer.status != 200]
    seen = f"{len(answers) - len(refused)} of {len(answers)} at once answered"
    if not refused:
        return failed(f"{seen}, though the lane may hold {MAX_REQUESTS}")
    first = refused[0]
    seen += f", {len(refused)} refused: {first}, retry-after {first.headers.get('retry-after', 'missing')} s; {left} left meanwhile"
    is_right = all(answer.code == "edge_overloaded" and answer.status == 429 and "retry-after" in answer.headers for answer in refused)
    return ok(seen) if is_right and has_refused and len(refused) == _SURPLUS and left == 0 else failed(seen)
