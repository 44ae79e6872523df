"""What became of one request, as its client saw it."""

from __future__ import annotations

from msgspec import Struct

BROKEN = 0
"""The status of a request without a whole answer in HTTP: refused, broken off, or out of time."""

MAX_GAPS = 1024
"""So many gaps between tokens are kept of one answer; the longest is kept whatever its place."""


class Outcome(Struct, frozen=True, kw_only=True, gc=False):
    """One request: what was asked (`kind`), in which stage it was due, and what came. Times are in seconds from the load's begin.

    `code` is the server's error code, or the client's word for what broke. Of streams, `first_token` is when the first text came, and
    `gaps` are the times between reads that brought text. A client that left (`has_left`) is neither answered nor failed.
    """

    kind: str
    stage: int
    intended: float
    sent: float
    ended: float
    is_stream: bool = False
    first_byte: float | None = None
    first_token: float | None = None
    gaps: tuple[float, ...] = ()
    longest_gap: float = 0.0
    status: int = BROKEN
    code: str = ""
    is_whole: bool = False
    has_left: bool = False
    tokens: int = 0
    retry_after: float | None = None
    attempts: int = 0
    pod: str = ""
    queue: str = ""
    request_id: str = ""

    @property
    def latency(self) -> float:
        """Seconds from the intended begin to the end: what waited in a late client counts, too."""
        return self.ended - self.intended

    @property
    def ttft(self) -> float | None:
        """Seconds from the intended begin to the first text of a stream."""
        return None if self.first_token is None else self.first_token - self.intended

    @property
    def lag(self) -> float:
        """How late the client itself was."""
        return self.sent - self.intended

    @property
    def result(self) -> str:
        """Status and code in one word or two: `200`, `429 queue_full`, `0 connection_broken`, `200 cut_off`, `left`."""
        if self.has_left:
            return "left"
        code = self.code or ("" if self.is_whole or self.status != 200 else "cut_off")
        return f"{self.status} {code}".strip()
