"""What the doctor found: a row for each check, as a table or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

Mark = Literal["ok", "failed", "not in use"]

_SIGNS = {"ok": "[green]✓[/]", "failed": "[red]✗[/]", "not in use": "[dim]-[/]"}


class Finding(Struct, frozen=True):
    """What one check saw. `cure` replaces the check's own where more is known."""

    mark: Mark
    seen: str
    cure: str = ""


class Row(Struct, frozen=True):
    """A check and what it found; `cure` is empty unless it failed."""

    name: str
    mark: Mark
    seen: str
    cure: str


class Report(Struct, frozen=True):
    """All rows. `healthy`: none failed."""

    url: str
    healthy: bool
    num_requests: int
    seconds: float
    rows: list[Row]


def ok(seen: str) -> Finding:
    """The policy acts."""
    return Finding("ok", seen)


def failed(seen: str, cure: str = "") -> Finding:
    """It does not."""
    return Finding("failed", seen, cure)


def unused(why: str) -> Finding:
    """There is nothing to prove here, or it was left out on purpose."""
    return Finding("not in use", why)


def table(rows: Sequence[Row]) -> Table:
    """The rows for a terminal; the column of cures only if there is one."""
    from rich.markup import escape  # noqa: PLC0415 - `doctor --json` needs no rich
    from rich.table import Table  # noqa: PLC0415

    has_cures = any(row.cure for row in rows)
    result = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "what", "seen", *(("cure",) if has_cures else ())):
        result.add_column(column, no_wrap=column in {"", "what"})
    for row in rows:
        result.add_row(_SIGNS[row.mark], row.name, escape(row.seen), *((escape(row.cure),) if has_cures else ()))
    return result
