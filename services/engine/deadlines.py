"""The moment by which a request wants its answer, from `x-request-deadline-ms` and what the edge says of it.

It holds from the request's arrival to the last byte: reading the body, tokenizing, the queue and the generation. Through Envoy the header
has been checked and capped; whoever asks a pod directly is told here what is allowed.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from typing import TYPE_CHECKING

from services.openai.errors import DeadlineExceeded, InvalidValue
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from types import TracebackType

    from multidict import CIMultiDictProxy

    from services.engine.exchange import Exchange

log = get_logger()

HEADER = "x-request-deadline-ms"
_EDGE_HEADER = "x-convoy-deadline"
# What Envoy says is left, by its own monotonic clock; it lets a request go on for so long after its deadline (request.lua).
_REST_HEADER = "x-envoy-expected-rq-timeout-ms"
_GRACE_SECONDS = 0.5
_ATTEMPT_HEADER = "x-envoy-attempt-count"
_WHOLE = re.compile(r"0*([0-9]+)")
# More digits than any time limit has; longer numbers are capped unread.
_MAX_DIGITS = 15


class Deadline:
    """Ends one request's work when its time is over: as a context manager around the handler, in the handler's own task.

    A request that has a run ends by the run's error, on whatever way the answer goes; before that its task is cancelled, which gives up
    its place in the queue, and leaves here as `DeadlineExceeded`.
    """

    def __init__(self, exchange: Exchange, milliseconds: int, at: float) -> None:
        """`milliseconds` is what was asked for, to be named in the error; `at` is on the clock of `time.monotonic()`."""
        self.at = at
        self._exchange = exchange
        self._milliseconds = milliseconds
        self._has_passed = False
        self._is_cancelling = False

    def check(self) -> None:
        """Raises `DeadlineExceeded` if the time is over."""
        if self._has_passed or time.monotonic() >= self.at:
            raise self._error()

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, self.at - time.monotonic()), self._expire)

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._timer.cancel()
        if not self._is_cancelling:
            return
        if self._task is not None and hasattr(
            self._task, "uncancel"
        ):  # from Python 3.11 on a task counts who wants its end, and we no longer do
            self._task.uncancel()
        if kind is asyncio.CancelledError:
            raise self._error() from None

    def _expire(self) -> None:
        self._has_passed = True
        if self._exchange.run is not None:
            self._exchange.run.end(self._error())
        elif self._task is not None:
            self._is_cancelling = True
            self._task.cancel()

    def _error(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"The deadline of {self._milliseconds} ms passed")


def deadline_of(
    headers: CIMultiDictProxy[str], exchange: Exchange, limit_seconds: float, first_token_seconds: float = math.inf
) -> Deadline | None:
    """The deadline that a request asks for, at most `limit_seconds` after its arrival, or None. Raises `InvalidValue`.

    `first_token_seconds`: how long Envoy gives one attempt at a stream.
    """
    if HEADER not in headers:
        return None
    limit = int(limit_seconds * 1000)
    text = ", ".join(headers.getall(HEADER))
    digits = _WHOLE.fullmatch(text)
    if digits is None or digits[1] == "0":
        raise InvalidValue(f"{HEADER} must be a whole number of milliseconds, at least 1, got {text[:100]!r}", param=HEADER)
    milliseconds = min(limit, int(digits[1])) if len(digits[1]) <= _MAX_DIGITS else limit
    seconds = milliseconds / 1000
    if attempt_of(headers) > 1:
        seconds = min(seconds, _left_seconds(headers, seconds, first_token_seconds))
    return Deadline(exchange, milliseconds, exchange.arrived_at + seconds)


def attempt_of(headers: CIMultiDictProxy[str]) -> int:
    """Which attempt at a request this is, by Envoy's count."""
    count = headers.get(_ATTEMPT_HEADER, "1")
    return int(count) if count.isascii() and count.isdigit() and len(count) <= _MAX_DIGITS else 1


def _left_seconds(headers: CIMultiDictProxy[str], wanted: float, first_token_seconds: float) -> float:
    """What an earlier attempt has left of the `wanted` time; at the first one the two machines' clocks need not agree.

    Envoy's own count holds, whatever becomes of the clocks. It goes no further than the limit of one attempt: where that is what it says,
    the earlier attempt took no longer than that, and within this bound the wall clocks have the word.
    """
    rest = _milliseconds(headers.get(_REST_HEADER))
    if rest is not None and rest / 1000 < first_token_seconds:
        return max(0.0, rest / 1000 - _GRACE_SECONDS)
    edge_deadline = headers.get(_EDGE_HEADER, "")
    end = _milliseconds(edge_deadline)
    if end is None:
        log.error("deadline.bad_edge_header", header=_EDGE_HEADER, value=edge_deadline[:100], allowed="Unix milliseconds")
        return wanted
    least = 0.0 if rest is None else wanted - first_token_seconds
    return max(0.0, least, end / 1000 - time.time())


def _milliseconds(text: str | None) -> int | None:
    digits = _WHOLE.fullmatch(text or "")
    return int(digits[1]) if digits is not None and len(digits[1]) <= _MAX_DIGITS else None
