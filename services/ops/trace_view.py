"""A request's trace as it is printed: a header, the tree on a time line, the sentences; or the same as JSON."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import msgspec
from rich.text import Text

from services.ops.trace_words import milliseconds, where

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from services.ops.trace_facts import Node, Request

_MIN_BAR, _MAX_BAR = 12, 40
# Room for what stands behind the bar of most lines; longer words run on.
_NOTE_WIDTH = 22
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_COLOURS = {"queue": "yellow", "prefill": "magenta", "decode": "green", "request": "blue"}


def as_json(trace_id: str, requests: Sequence[Request]) -> str:
    """One object with the facts that the terminal shows."""
    shown = [{**msgspec.to_builtins(request), "where": where(request)} for request in requests]
    return msgspec.json.encode({"trace_id": trace_id, "requests": shown}).decode()


def draw(trace_id: str, request: Request, width: int) -> Text:
    """All lines, for a terminal of `width` columns."""
    rows = [("", request.tree), *_rows(request.tree, "")]
    names = max(len(guides) + len(node.name) for guides, node in rows)
    places = max(len(node.place) for _, node in rows)
    bar = max(_MIN_BAR, min(_MAX_BAR, width - names - places - 24 - _NOTE_WIDTH))
    lines = [*_header(trace_id, request), Text(), Text(f"{'':{names + places + 4}}{'start':>8} {'took':>8}", "dim")]
    lines += [_line(request, guides, node, (names, places, bar)) for guides, node in rows]
    lines += [Text(), *(Text(sentence) for sentence in where(request)), Text()]
    return Text("\n").join(lines)


def bar(start: float, end: float, width: int) -> str:
    """A bar from `start` to `end` (shares of the whole) in `width` columns, exact to an eighth of a column; never nothing."""
    begin, eighths = int(start * width), max(1, round((end - start) * width * 8))
    begin = min(begin, width - 1)
    eighths = min(eighths, (width - begin) * 8)
    return " " * begin + "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def _header(trace_id: str, request: Request) -> list[Text]:
    at = datetime.fromtimestamp(request.at, timezone.utc).isoformat(" ", "milliseconds").removesuffix("+00:00")
    first = Text.assemble((request.request_id, "bold"), f"  trace {trace_id}  {at} UTC")
    outcome = str(request.status or "no answer")
    colour = "yellow" if request.is_cancelled else "green" if request.status < 400 and not _is_broken(request) else "red"
    told = ["client left"] if request.is_cancelled else []
    told += [f"{len(request.attempts)} attempt{'s' if len(request.attempts) != 1 else ''}"] if request.attempts else []
    told += [f"{request.input_tokens} tokens in, {request.output_tokens} out"] if request.input_tokens else []
    told += [request.finish_reason] if request.finish_reason else []
    by = f" by {request.pod}" if request.pod else ""
    second = Text.assemble(
        f"{request.method} {request.path} → ",
        (outcome, colour),
        f"{by} in {milliseconds(request.total_ms)}",
        *(f" · {part}" for part in told),
    )
    return [first, second]


def _is_broken(request: Request) -> bool:
    return bool(request.attempts and request.attempts[-1].error)


def _rows(node: Node, guides: str) -> Iterator[tuple[str, Node]]:
    for child in node.children:
        is_last = child is node.children[-1]
        yield guides + ("└─ " if is_last else "├─ "), child
        yield from _rows(child, guides + ("   " if is_last else "│  "))


def _line(request: Request, guides: str, node: Node, widths: tuple[int, int, int]) -> Text:
    names, places, width = widths
    total = request.total_ms or 1e-9
    start = min(max(node.start_ms / total, 0), 1)
    if node.ms is None:
        took, drawn, colour = "", " " * min(math.floor(start * width), width - 1) + "◆", "cyan"
    else:
        took, drawn = milliseconds(node.ms), bar(start, min(max((node.start_ms + node.ms) / total, start), 1), width)
        colour = "red" if node.error else _COLOURS.get(node.name, "blue")
    line = Text.assemble((guides, "dim"), (f"{node.name:{names - len(guides)}}", "cyan" if node.ms is None else ""))
    line.append(f"  {node.place:{places}}  ", "dim")
    line.append(f"{milliseconds(max(node.start_ms, 0)):>8} {took:>8}  ")
    line.append(f"{drawn:{width}}", colour)
    line.append(f"  {node.note}", "dim")
    line.append(f"  ✗ {node.error}" if node.error else "", "red")
    line.rstrip()
    return line
