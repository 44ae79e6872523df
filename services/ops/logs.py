"""`convoy logs`: the last lines of one log or of all merged by time, and what comes after, through rotation."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, TextIO

from services.ops.state import OpsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_POLL_SECONDS = 0.2

# `2026-01-31T10:00:00.123Z`, also with a blank for T, a comma for the dot, and without zone (then it is local time).
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:[.,](\d{1,6})\d*)?(Z|[+-]\d\d:?\d\d)?")


@dataclass(frozen=True, order=True)
class Line:
    """One line of a log; `at` is unix time, that of the line before if it has none of its own."""

    at: float
    name: str = field(compare=False)
    text: str = field(compare=False)


def names(folder: Path) -> list[str]:
    """The logs that exist."""
    return sorted(path.stem for path in folder.glob("*.log"))


def pick(folder: Path, name: str | None) -> list[str]:
    """The logs that are meant; raises `OpsError` if there is no such log."""
    existing = names(folder)
    if name is None:
        return existing
    if name not in existing:
        raise OpsError(f"there is no log {name!r}; there are: {', '.join(existing) or 'none, start with `convoy up`'}")
    return [name]


def tail(folder: Path, chosen: list[str], count: int) -> list[Line]:
    """The last `count` lines over all chosen logs, by time; looks into the rotated file before the current one too."""
    kept: list[Line] = []
    for name in chosen:
        current = folder / f"{name}.log"
        files = (path for path in (folder / f"{name}.log.1", current) if path.is_file())
        kept += deque(_timed(name, itertools.chain.from_iterable(map(_lines, files))), maxlen=count)
    return sorted(kept)[-count:] if count else []


def follow(folder: Path, name: str | None) -> Iterator[Line]:
    """Yields lines as they are written, for ever; a log that appears later (a new pod's) is followed from its beginning."""
    readers = {found: Reader(folder / f"{found}.log", from_end=True) for found in names(folder)}
    while True:
        for found in names(folder):
            readers.setdefault(found, Reader(folder / f"{found}.log", from_end=False))
        wanted = [name] if name else list(readers)
        yield from sorted(line for found in wanted for line in _timed(found, readers[found].new_lines()))
        time.sleep(_POLL_SECONDS)


def time_of(text: str, before: float) -> float:
    """The first time named in a line as unix time; `before` if it names none."""
    found = _TIME.search(text[:300])
    if not found:
        return before
    day, clock, fraction, zone = found.groups()
    offset = {None: "", "Z": "+00:00"}.get(zone, zone)
    try:
        return datetime.fromisoformat(f"{day}T{clock}.{(fraction or '0').ljust(6, '0')}{offset}").timestamp()
    except ValueError:
        return before


class Reader:
    """Reads what is appended to a log; when the file was rotated, the rest of the old one, then the new one."""

    def __init__(self, path: Path, *, from_end: bool) -> None:
        """Opens the log at its end or its beginning; one that is not there yet is read from its beginning when it is."""
        self.path = path
        self.file: TextIO | None = None
        self.partial = ""
        self._open()
        if self.file and from_end:
            self.file.seek(0, 2)

    def new_lines(self) -> list[str]:
        """The complete lines that came since the last call."""
        text = self._read()
        if self._is_rotated():
            text += self._read()
            self._open()
            text += self._read()
        *lines, self.partial = (self.partial + text).split("\n")
        return lines

    def _open(self) -> None:
        if self.file:
            self.file.close()
        try:
            self.file = self.path.open(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            self.file = None

    def _read(self) -> str:
        return self.file.read() if self.file else ""

    def _is_rotated(self) -> bool:
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return False
        if self.file is None:
            return True
        return now.st_ino != os.fstat(self.file.fileno()).st_ino or now.st_size < self.file.tell()


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            yield line.rstrip("\n")


def _timed(name: str, lines: Iterator[str] | list[str]) -> Iterator[Line]:
    at = 0.0
    for text in lines:
        at = time_of(text, at)
        yield Line(at, name, text)
