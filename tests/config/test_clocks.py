"""No time limit reads the wall clock, which people and time servers set: what waits reads the monotonic one."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from tests.config.test_structure import PYTHON, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WALL = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "dt.datetime.now", "date.today", "time.localtime", "time.gmtime"}
PROCESS_START = ".create_time"
"""Calls that read it; so does a process's start, as psutil tells it."""

ALLOWED = {
    "services/engine/children.py": (1, "shown: when a pod started"),
    "services/engine/deadlines.py": (
        1,
        "a second attempt at a stream, within the bounds of what Envoy says by its monotonic clock",
    ),
    "services/engine/exchange.py": (1, "shown: when a span began, from which its end is reckoned by the monotonic clock"),
    "services/engine/handlers.py": (1, "shown: `created` of an answer"),
    "services/engine/places.py": (1, "shown: when a pod that died again and again is tried next"),
    "services/engine/pod.py": (1, "shown: `created` of the model"),
}
"""How many such calls a file may have, and what for."""

SOURCES = [path for path in PYTHON if path.relative_to(ROOT).parts[:2] in {("services", "engine"), ("services", "store")}]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_time_limits_do_not_read_the_wall_clock(path: Path) -> None:
    """Pods and their store read it only where Unix time is shown, or agreed with another process."""
    found = list(_readings(ast.parse(path.read_text())))
    count, _ = ALLOWED.get(str(path.relative_to(ROOT)), (0, ""))
    assert len(found) == count, f"{path}: {found}; a time limit wants time.monotonic(), what is shown wants a line in ALLOWED"


def test_sql_does_not_read_the_wall_clock() -> None:
    """SQLite has functions of its own for it."""
    for path in SOURCES:
        text = path.read_text().lower()
        assert not any(word in text for word in ("current_timestamp", "strftime(", "unixepoch", "julianday(")), path


def _readings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (ast.unparse(node) in WALL or ast.unparse(node).endswith(PROCESS_START)):
            yield f"line {node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"line {node.lineno}: from time import {name.name}" for name in node.names if name.name != "monotonic")
