"""One examination: opens the lane, runs the checks, a few at a time, and takes everything away, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import aiohttp

from services.ops.doctor import healing
from services.ops.doctor.asking import Admin, Asker, Keys, NoAnswerError
from services.ops.doctor.checks import CHECKS
from services.ops.doctor.lane import LaneError, lane
from services.ops.doctor.rows import Finding, Report, Row, failed, ok, unused
from services.ops.doctor.visit import Visit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from services.ops.doctor.checks import Check
    from services.ops.doctor.target import Target

MAX_SECONDS = 180.0
"""The edge takes the lane and the keys away then, even if the doctor was killed."""
_CHECK_SECONDS = 100.0
_LANE_CURE = "`convoy status` and `convoy logs edge` tell whether edge and Envoy are well."
_TURNS = ("one pod", "hung pod", "beside")


async def examine(target: Target, tell: Callable[[str], None], *, is_quick: bool = False) -> Report:
    """Runs every check; `tell` hears what is being done. With `is_quick` what takes long is left out."""
    began = time.monotonic()
    found: dict[str, Finding] = {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        asker = Asker(session, target.url, Keys() if target.asks_for_keys else None)
        visit = Visit(target, asker, Admin(session, target.settings.admin_port), is_quick)
        async with _opened(visit, tell) as (visit, lane_row):
            await _turn(visit, [check for check in CHECKS if check.turn == "all pods"], found, tell)
            if visit.maybe_lane:
                visit.lane.break_pods(healing.HANG)
            turns = [[check for check in CHECKS if check.turn == turn] for turn in _TURNS]
            await asyncio.gather(*[_turn(visit, checks, found, tell) for checks in turns])
    rows = [lane_row, *[_row(check.name, found[check.name], check.cure) for check in CHECKS]]
    is_healthy = all(row.mark != "failed" for row in rows)
    return Report(target.url, is_healthy, asker.num_requests, round(time.monotonic() - began, 1), rows)


@contextlib.asynccontextmanager
async def _opened(visit: Visit, tell: Callable[[str], None]) -> AsyncIterator[tuple[Visit, Row]]:
    """The visit with its lane, or without one where there is none, and the row that tells of it."""
    tell("starting own pods and a lane to them")
    async with contextlib.AsyncExitStack() as stack:
        began = time.monotonic()
        try:
            opened = await stack.enter_async_context(lane(visit.target, visit.asker, visit.admin, MAX_SECONDS))
        except (LaneError, OSError) as error:
            yield visit, _row("lane", failed(str(error)), _LANE_CURE)
            return
        seen = ok(f"{len(opened.pods)} pods of the doctor's own behind Envoy after {time.monotonic() - began:.1f} s")
        yield Visit(visit.target, visit.asker, visit.admin, visit.is_quick, opened), _row("lane", seen, "")


async def _turn(visit: Visit, checks: Sequence[Check], found: dict[str, Finding], tell: Callable[[str], None]) -> None:
    for check in checks:
        tell(f"checking {check.name}")
        found[check.name] = await _finding(visit, check)


async def _finding(visit: Visit, check: Check) -> Finding:
    """What a check finds; one that cannot be carried out has failed, and says why."""
    if check.needs_lane and visit.maybe_lane is None:
        return unused("not tried: there is no lane")
    try:
        return await asyncio.wait_for(check.run(visit), _CHECK_SECONDS)
    except NoAnswerError as error:
        return failed(str(error))
    except asyncio.TimeoutError:
        return failed(f"not done within {_CHECK_SECONDS:g} s")
    except Exception as error:  # noqa: BLE001 - the boundary: one check that breaks shall not hide what the others found
        return failed(f"the check broke: {type(error).__name__}: {error}")


def _row(name: str, finding: Finding, cure: str) -> Row:
    return Row(name, finding.mark, finding.seen, (finding.cure or cure) if finding.mark == "failed" else "")
