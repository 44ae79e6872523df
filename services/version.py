"""Convoy's version, as pyproject.toml has it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path


@cache
def version() -> str:
    """Such as `0.1.0`; `unknown` where the code runs without its pyproject.toml."""
    path = Path(__file__).resolve().parents[1] / "pyproject.toml"
    found = re.search(r'^version = "(.+)"$', path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1] if found else "unknown"
