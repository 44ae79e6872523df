"""Writing a file so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_atomically(path: Path, content: bytes, mode: int | None = None) -> None:
    """Replaces `path` by rename; its folder must exist. With a `mode` (0o600: secrets) nobody else can read it at any moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode), "wb") as file:
        file.write(content)
    temporary.replace(path)
