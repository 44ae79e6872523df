"""The one log format of every process: structured records on stdout, one JSON object a line, or text for people.

An event is a fixed dotted word (`edge.pods_changed`); what varies goes into keys.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

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
    last: list[Processor] = [for_people, _encoded] if fmt == "console" else [structlog.processors.JSONRenderer(_json)]
    processors = [*shared, *last]
    output: Any = _Lossy(sys.stdout.buffer, _lost_record(processors))
    with suppress(OSError):
        sys.stdout.flush()  # what was printed before comes before
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(severity),
        logger_factory=structlog.BytesLoggerFactory(output),
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


class _Lossy:
    """An output that may fail, as on a full disk: records that cannot be written are lost and counted, and are never the caller's error.

    `tell` makes the record of how many were lost, which follows the first one for which there is room again. Unbuffered, for what a
    buffer does after an error is its own affair; a record is written at once anyway.
    """

    def __init__(self, stream: Any, tell: Callable[[int], bytes]) -> None:
        """`stream` is stdout's, or what stands in for it and has no buffer."""
        self._write = getattr(stream, "raw", stream).write
        self._tell = tell
        self._num_lost = 0
        self._is_torn = False

    def write(self, line: bytes) -> None:
        """Writes a line, or counts it."""
        if not self._is_written(line):
            self._num_lost += 1
        elif self._num_lost and self._is_written(self._tell(self._num_lost)):
            self._num_lost = 0

    def flush(self) -> None:
        """There is nothing left to write."""

    def _is_written(self, line: bytes) -> bool:
        left = b"\n" + line if self._is_torn else line
        whole = len(left)
        try:
            while left:
                num_written = self._write(left)
                if num_written is None:  # a full pipe that does not block
                    break
                left = left[num_written:]
        except OSError:
            pass
        # Half a line at most: the next one begins a line of its own.
        self._is_torn = self._is_torn if len(left) == whole else bool(left)
        return not left


def _lost_record(processors: Sequence[Processor]) -> Callable[[int], bytes]:
    """Makes the line that says so, past the logger, whose lock is held by whoever finds out."""

    def make(num_lost: int) -> bytes:
        record: Any = {"event": "log.records_lost", "count": num_lost}
        for process in processors:
            record = process(None, "error", record)
        return bytes(record) + b"\n"

    return make


def _encoded(_logger: WrappedLogger, _method: str, text: Any) -> bytes:
    """For people, too, as bytes: half a surrogate pair is no reason to fail."""
    return str(text).encode(errors="backslashreplace")


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
