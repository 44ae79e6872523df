"""Writing a file so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_atomically(path: Path, content: bytes, mode: int | None = None) -> None:
    """Replaces `path` by rename; its folder must exist. With a `mode` nobody else can read it meanwhile, and it has that mode then."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    if mode is not None:
        temporary.unlink(missing_ok=True)
        temporary.touch(mode=0o600, exist_ok=False)
        temporary.chmod(mode)
    temporary.write_bytes(content)
    temporary.replace(path)
