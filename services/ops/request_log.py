"""What the logs say of one request: Envoy's access log and the pods' records. Envoy writes a record when the request is over."""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

T = TypeVar("T")


class Access(Struct, frozen=True, kw_only=True):
    """A line of Envoy's access log. `pod` is `edge` for an answer of Envoy's own; null is what there was none of."""

    ts: str
    request_id: str | None = None
    trace_id: str | None = None
    method: str | None = None
    path: str | None = None
    status: int | None = None
    flags: str | None = None
    pod: str | None = None
    upstream: str | None = None
    total_ms: float | None = None

    @property
    def began_at(self) -> float:
        """Unix time."""
        return datetime.fromisoformat(self.ts.replace("Z", "+00:00")).timestamp()

    @property
    def ended_at(self) -> float:
        """Unix time."""
        return self.began_at + (self.total_ms or 0) / 1000


class Done(Struct, frozen=True, kw_only=True):
    """A pod's record of a request that it handled."""

    ts: str
    event: str
    request_id: str = ""
    trace_id: str = ""
    pod: str = ""
    endpoint: str = ""
    status: int = 0
    completion_tokens: int = 0
    queue_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    total_ms: float = 0


def access(folder: Path, wanted: str) -> list[Access]:
    """The edge's records of a request id or a trace id, newest first."""
    lines = _lines(_files(folder, "access.log*"), wanted)
    found = [record for record in _records(lines, Access) if wanted in {record.request_id, record.trace_id}]
    return sorted(found, key=lambda record: record.began_at, reverse=True)


def done(folder: Path, wanted: str) -> list[Done]:
    """The pods' records of a request id or a trace id, newest first."""
    lines = _lines(_files(folder, "engine-*.log*"), wanted)
    records = (record for record in _records(lines, Done) if record.event == "request.done")
    found = [record for record in records if wanted in {record.request_id, record.trace_id}]
    return sorted(found, key=lambda record: record.ts, reverse=True)


def pods_at(folder: Path, addresses: Iterable[str]) -> dict[str, str]:
    """Which pod answered last at each address: one that died is in no pods file any more."""
    found: dict[str, str] = {}
    for address in addresses:
        for record in _records(_lines(_files(folder, "access.log*"), address), Access):
            if record.upstream == address and record.pod not in {None, "edge"}:
                found[address] = str(record.pod)
    return found


def _files(folder: Path, pattern: str) -> list[Path]:
    """A log with its rotated files, oldest first."""
    return sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def _lines(files: Iterable[Path], text: str) -> Iterator[bytes]:
    # Bytes first: decoding only what may be meant reads a full log in a fraction of a second.
    needle = msgspec.json.encode(text)
    for path in files:
        with path.open("rb") as file:
            yield from (line for line in file if needle in line)


def _records(lines: Iterable[bytes], kind: type[T]) -> Iterator[T]:
    for line in lines:
        with contextlib.suppress(msgspec.DecodeError):  # a half line, or what a pod printed
            yield msgspec.json.decode(line, type=kind)
