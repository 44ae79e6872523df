"""What has come of one request so far: filled in by a client while it reads, then an `Outcome`. Ours uses it, and Locust's."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from services.ops.load.outcome import BROKEN, MAX_GAPS, Outcome
from services.ops.load.sse import completion_tokens, error_code, is_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.ops.load.kinds import Kind
    from services.ops.load.sse import EventReader

OK = 200


class Seen:
    """Times by whatever clock the client uses for all of them."""

    __slots__ = ("_headers", "_last", "_longest_gap", "_reads", "code", "first_byte", "has_left", "is_whole", "sent", "status", "tokens")

    def __init__(self, sent: float) -> None:
        """The request was begun; nothing has come yet."""
        self.sent = sent
        self.first_byte: float | None = None
        self.status = BROKEN
        self.code = ""
        self.is_whole = self.has_left = False
        self.tokens = 0
        self._headers: Mapping[str, str] = {}
        self._reads: list[float] = []
        self._last = self._longest_gap = 0.0

    def began(self, now: float, status: int, headers: Mapping[str, str]) -> None:
        """The headers have come; their names are found in any case, or are in lower case."""
        self.first_byte, self.status, self._headers = now, status, headers

    def text_came(self, now: float) -> None:
        """A read has brought text of a stream."""
        reads = self._reads
        if len(reads) <= MAX_GAPS:
            reads.append(now)
        if self._last:
            self._longest_gap = max(self._longest_gap, now - self._last)
        self._last = now

    def ended_as(self, reader: EventReader) -> None:
        """The stream is over, one way or another."""
        self.tokens, self.code, self.is_whole = reader.tokens, reader.code, reader.is_whole

    def judge(self, body: bytes) -> None:
        """The whole body has come, of JSON or of an error."""
        self.is_whole = self.status == OK and is_answer(body)
        if self.is_whole:
            self.tokens = completion_tokens(body)
        else:
            self.code = error_code(body)

    def broke(self, code: str) -> None:
        """There is no whole answer, and none will come."""
        self.status, self.code, self.is_whole = BROKEN, code, False

    def outcome(self, kind: Kind, stage: int, intended: float, began: float, ended: float) -> Outcome:
        """What became of it; `intended` from the load's begin, which was at `began` by the client's clock."""
        reads = self._reads
        return Outcome(
            kind=kind.name,
            stage=stage,
            intended=intended,
            sent=self.sent - began,
            ended=ended - began,
            is_stream=kind.is_stream,
            first_byte=None if self.first_byte is None else self.first_byte - began,
            first_token=reads[0] - began if reads else None,
            gaps=tuple(after - before for before, after in itertools.pairwise(reads)),
            longest_gap=self._longest_gap,
            status=self.status,
            code=self.code,
            is_whole=self.is_whole,
            has_left=self.has_left,
            tokens=self.tokens,
            **_told(self._headers),
        )


def _told(headers: Mapping[str, str]) -> dict[str, Any]:
    """What the answer says of itself."""
    get = headers.get
    attempts, retry_after = get("x-convoy-attempts", ""), get("retry-after", "")
    return {
        "attempts": int(attempts) if attempts.isdigit() else 0,
        "retry_after": float(retry_after) if retry_after.replace(".", "", 1).isdigit() else None,
        "pod": get("x-convoy-pod", ""),
        "queue": get("x-convoy-queue", ""),
        "request_id": get("x-request-id", ""),
    }
