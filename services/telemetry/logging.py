"""The one log format of every process: structured records on stdout, one JSON object a line, or text for people.

An event is a fixed dotted word (`edge.pods_changed`); what varies goes into keys.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger


def configure(level: str, fmt: str, service: str) -> None:
    """Sets up structlog and the standard library's logging for this process.

    `level` is debug, info, warning or error; `fmt` is json or console; `service` names the process in each record.
    """
    severity: int = getattr(logging, level.upper())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        _named(service),
        structlog.processors.format_exc_info,
    ]
    for_people = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), timestamp_key="ts")
    renderer: Processor = for_people if fmt == "console" else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(severity),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
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


def _named(service: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    return add


def get_logger() -> Any:
    """The process's logger: `log.info("edge.started", pods=2)`."""
    return structlog.get_logger()
