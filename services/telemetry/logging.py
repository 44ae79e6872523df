"""The one log format of every process: structured records on stdout, one JSON object a line, or text for people.

An event is a fixed dotted word (`edge.pods_changed`); what varies goes into keys.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.typing import EventDict, Processor, WrappedLogger


TRACE_ID: ContextVar[str] = ContextVar("trace_id", default="")
"""The trace of the request that is being handled; every record that is written meanwhile carries it."""


def configure(level: str, fmt: str, service: str) -> None:
    """Sets up structlog and the standard library's logging for this process.

    `level` is debug, info, warning or error; `fmt` is json or console; `service` names the process in each record.
    """
    severity: int = getattr(logging, level.upper())
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        _named(service),
        _traced,
        structlog.processors.format_exc_info,
    ]
    for_people = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), timestamp_key="ts")
    renderer: Processor = for_people if fmt == "console" else structlog.processors.JSONRenderer(_json_text)
    processors: list[Processor] = [*shared, renderer if fmt == "console" else structlog.processors.JSONRenderer(_json)]
    output: Any = _Lossy(sys.stdout if fmt == "console" else sys.stdout.buffer, _lost_record(processors))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(severity),
        logger_factory=structlog.PrintLoggerFactory(output) if fmt == "console" else structlog.BytesLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    # Libraries (aiohttp, asyncio) log through the standard library: same records, and only what matters.
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=max(severity, logging.WARNING), handlers=[handler], force=True)


class _Output(Protocol):
    """A stream of text or of bytes."""

    def write(self, text: Any, /) -> object: ...

    def flush(self) -> object: ...


class _Lossy:
    """An output that may fail, as on a full disk: records that cannot be written are lost and counted, and are never the caller's error.

    `tell` makes the record of how many were lost, which is written when there is room again.
    """

    def __init__(self, stream: _Output, tell: Callable[[int], Any]) -> None:
        self._stream = stream
        self._tell = tell
        self._num_lost = 0

    def write(self, text: Any, /) -> None:
        """Takes a record, whole or not at all: the stream's buffer is full of earlier ones, or it is not."""
        try:
            self._stream.write(text)
        except OSError:
            self._num_lost += 1

    def flush(self) -> None:
        """Writes what was taken; what cannot be written now is written by a later call."""
        with suppress(OSError):
            self._stream.flush()
            if self._num_lost:
                num_lost, self._num_lost = self._num_lost, 0
                self.write(self._tell(num_lost))
                self._stream.flush()


def _lost_record(processors: Sequence[Processor]) -> Callable[[int], Any]:
    """Makes the line that says so, past the logger, whose lock is held by whoever finds out."""

    def make(num_lost: int) -> Any:
        record: Any = {"event": "log.records_lost", "count": num_lost}
        for process in processors:
            record = process(None, "error", record)
        return record + (b"\n" if isinstance(record, bytes) else "\n")

    return make


def _json(record: object, **_: object) -> bytes:
    """One line; msgspec's encoder is several times as fast as the standard library's, which takes what the other refuses."""
    try:
        return msgspec.json.encode(record)
    except (TypeError, UnicodeEncodeError):  # a value of any other type, or text with half a surrogate pair
        return json.dumps(record, default=repr).encode()


def _json_text(record: object, **_: object) -> str:
    return _json(record).decode()


def _named(service: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    return add


def _traced(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    trace_id = TRACE_ID.get()
    if trace_id:
        event["trace_id"] = trace_id
    return event


def get_logger() -> Any:
    """The process's logger: `log.info("edge.started", pods=2)`."""
    return structlog.get_logger()
