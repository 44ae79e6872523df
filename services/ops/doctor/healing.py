"""What happens when pods break, seen on pods of the doctor's own: the second one breaks, the first one hangs, the third stays well."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from services.ops.doctor.asking import NoAnswerError
from services.ops.doctor.lane import CLUSTER
from services.ops.doctor.rows import failed, ok, unused
from services.ops.doctor.visit import until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.ops.doctor.asking import Answer
    from services.ops.doctor.rows import Finding
    from services.ops.doctor.visit import Visit

BROKEN, HANGING = "doctor: break", "doctor: hang"
"""Prompts that the faults of the second and the first pod are for: checks that run at the same time do not meet them."""
HANG = {1: {"failure": "hang", "prompt": HANGING}}
_BROKEN_POD = "engine-2"

# Two pods are drawn of three, so a request misses the broken one with at most 2/3: all of so many, once in a million runs.
_MAX_TRIES = 40
_MAX_ERRORS = 20
_DEADLINE_MS = 300
_DEADLINE_SECONDS = 3.0
MAX_WAIT_SECONDS = 60.0


async def deadline(visit: Visit) -> Finding:
    """A request that wants its answer within 300 ms is told soon after that there is none, whatever its pod does."""
    with visit.lane.frozen():
        try:
            answer = await visit.lane.ask(headers={"x-request-deadline-ms": str(_DEADLINE_MS)}, timeout=_DEADLINE_SECONDS)
        except NoAnswerError:
            return failed(f"a deadline of {_DEADLINE_MS} ms on pods that stand still: no answer within {_DEADLINE_SECONDS:g} s")
    message = str(answer.error.get("message", ""))
    seen = f"deadline of {_DEADLINE_MS} ms on pods that stand still: {answer} after {answer.seconds * 1000:.0f} ms"
    is_right = (answer.status, answer.code, answer.pod) == (504, "deadline_exceeded", "edge") and f" {_DEADLINE_MS} ms" in message
    return ok(seen) if is_right and answer.seconds >= _DEADLINE_MS / 1000 * 0.9 else failed(seen)


async def first_token(visit: Visit) -> Finding:
    """A stream that brings nothing within the limit is begun on another pod."""
    limit = visit.target.settings.first_token_timeout_seconds
    if visit.is_quick or limit > MAX_WAIT_SECONDS:
        return unused(f"left out: it takes FIRST_TOKEN_TIMEOUT_SECONDS={limit:g}")
    for _ in range(_MAX_TRIES):
        try:
            answer = await visit.lane.ask(HANGING, stream=True, timeout=limit * 2 + 5)
        except NoAnswerError as error:
            return failed(f"a stream on a hung pod: {error}, with FIRST_TOKEN_TIMEOUT_SECONDS={limit:g}")
        if answer.status != 200 or answer.attempts > 1:
            break
    else:
        return failed(f"{_MAX_TRIES} streams were answered, none of them by the pod that hangs")
    seen = f"a stream on a hung pod: {answer} after {answer.seconds:.1f} s, on attempt {answer.attempts}"
    is_right = answer.status == 200 and answer.attempts == 2 and limit * 0.9 <= answer.seconds
    return ok(seen) if is_right else failed(seen)


async def retry(visit: Visit) -> Finding:
    """A request whose pod breaks (500), or is not ready (503), is answered by another pod."""
    seen = []
    for failure, status in (("error", 500), ("unavailable", 503)):
        await _all_well(visit)
        _break(visit, failure)
        answer = await _until_struck(visit)
        visit.lane.break_pods(HANG)
        if answer is None:
            return failed(f"{_MAX_TRIES} requests were answered at the first attempt, though a pod answers {status}")
        seen.append(f"a pod's {status}: client got {answer} on attempt {answer.attempts}")
        if (answer.status, answer.attempts) != (200, 2):
            return failed("; ".join(seen))
    return ok("; ".join(seen))


async def ejection(visit: Visit) -> Finding:
    """A pod that breaks again and again gets nothing more for a while, and is then tried again."""
    settings = visit.target.settings
    most = settings.eject_after_errors
    if most > _MAX_ERRORS:
        return unused(f"left out: EJECT_AFTER_ERRORS={most} would take as many errors")
    await _all_well(visit)
    _break(visit, "error")
    num_errors, began, is_out = 0, time.monotonic(), False
    for _ in range(_MAX_TRIES + most * 6):
        is_out = await _num_ejected(visit) > 0
        if is_out or num_errors > most + 1:
            break
        num_errors += _is_struck(await visit.lane.ask(BROKEN))
    visit.lane.break_pods(HANG)
    if not is_out:
        return failed(f"a pod broke {num_errors} times in a row and still got requests; EJECT_AFTER_ERRORS={most}")
    began = time.monotonic()
    if num_errors < most:
        return failed(f"a pod was left out after {num_errors} errors; EJECT_AFTER_ERRORS={most}")
    if visit.is_quick or settings.ejection_seconds > MAX_WAIT_SECONDS / 3:
        return ok(f"left out after {num_errors} errors in a row; not waited for its return")
    has_returned = await _until_none_ejected(visit)
    took = time.monotonic() - began
    seen = f"left out after {num_errors} errors in a row"
    return ok(f"{seen}, back after {took:.0f} s") if has_returned else failed(f"{seen}, not back after {took:.0f} s")


def _break(visit: Visit, failure: str) -> None:
    faults: Mapping[int, Mapping[str, str]] = {**HANG, 2: {"failure": failure, "prompt": BROKEN}}
    visit.lane.break_pods(faults)


async def _until_struck(visit: Visit) -> Answer | None:
    for _ in range(_MAX_TRIES):
        answer = await visit.lane.ask(BROKEN)
        if _is_struck(answer):
            return answer
    return None


def _is_struck(answer: Answer) -> bool:
    return answer.status != 200 or answer.attempts > 1


async def _all_well(visit: Visit) -> None:
    """No fault but the one that hangs, no pod left out, and the pod that breaks next has just answered well: it has no errors in a row."""
    visit.lane.break_pods(HANG)
    await _until_none_ejected(visit)
    for _ in range(_MAX_TRIES):
        if (await visit.lane.ask()).pod == _BROKEN_POD:
            return


async def _num_ejected(visit: Visit) -> int:
    name = f"cluster.{CLUSTER}.outlier_detection.ejections_active"
    return int((await visit.admin.stats(f"^{name}$")).get(name, 0))


async def _until_none_ejected(visit: Visit) -> bool:
    async def is_none() -> bool:
        return await _num_ejected(visit) == 0

    # The second time it lasts twice, the third time three times as long.
    return await until(is_none, min(MAX_WAIT_SECONDS, visit.target.settings.ejection_seconds * 3 + 5))
