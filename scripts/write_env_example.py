"""Writes `.env.example` from the settings classes: every setting with its help, what it takes, and its default."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from services.settings.common import START  # noqa: E402 - found only with the checkout on the path
from services.settings.declared import ALL  # noqa: E402 - likewise
from services.settings.reader import allowed_of, applies_of, help_of  # noqa: E402 - likewise

_WIDTH = 118
_HEAD = """\
# Every setting of Convoy with its default, made by scripts/write_env_example.py. Copy what you change into .env;
# a variable of the environment, or `make up NAME=value`, goes before it. A misspelt or impossible value stops the start.
# [live]: a change in .env is in force within a second. [convoy restart …]: after that command, which loses no request; a plain
# `convoy restart` does all of them. All others: after `convoy down` and `convoy up`. `convoy reload` tells which changes wait for what.
"""


def text() -> str:
    """The whole file."""
    parts, seen = [_HEAD], set[str]()
    for cls in ALL:
        fresh = [field for field in msgspec.structs.fields(cls) if field.name not in seen]
        seen |= {field.name for field in fresh}
        doc = (cls.__doc__ or "").splitlines()[0]
        parts.append(f"\n# --- {doc}\n")
        parts += [_entry(field) for field in fresh]
    return "".join(parts)


def _entry(field: msgspec.structs.FieldInfo) -> str:
    description, allowed = help_of(field), allowed_of(field)
    words = f"{description} Takes {allowed}." if allowed != "a text" and allowed not in description else description
    applies = applies_of(field)
    words += " [live]" if applies == "live" else f" [{applies}]" if applies != START["applies"] else ""
    comment = textwrap.fill(words, _WIDTH, initial_indent="# ", subsequent_indent="# ")
    default = field.default
    shown = str(default).lower() if isinstance(default, bool) else f"{default:g}" if isinstance(default, float) else str(default)
    return f"\n{comment}\n#{field.name.upper()}={shown}\n"


if __name__ == "__main__":
    (ROOT / ".env.example").write_text(text())
