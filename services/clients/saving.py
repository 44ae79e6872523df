"""Changes a clients file on disk: whole or not at all, one change at a time, its mode and owner kept."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from services.clients.reading import ClientsFileError
from services.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_NEW_MODE = 0o600
_LOCK_SECONDS = 10.0
_BYTE_ORDER_MARK = "\ufeff"


def change(path: Path, edit: Callable[[str | None], str]) -> bytes:
    """Replaces the file's text by what `edit` makes of it (of None where there is no file); gives what is in it then.

    Raises what `edit` raises, `ClientsFileError`, and `OSError`; the file is then as it was.
    """
    path = path.resolve()  # of a link the file that it leads to is replaced, not the link
    with _lock(path):
        before = _text(path)
        mark = _BYTE_ORDER_MARK if before is not None and before.startswith(_BYTE_ORDER_MARK) else ""
        content = (mark + edit(before if before is None else before.removeprefix(mark))).encode()
        known = path.stat() if before is not None else None
        if known and os.geteuid() not in {0, known.st_uid}:
            raise ClientsFileError(f"{path.name} belongs to another user (id {known.st_uid}); change it as that user")
        write_atomically(path, content, stat.S_IMODE(known.st_mode) if known else _NEW_MODE)
        if known and (path.stat().st_uid, path.stat().st_gid) != (known.st_uid, known.st_gid):
            os.chown(path, known.st_uid, known.st_gid)
    return content


def _text(path: Path) -> str | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ClientsFileError(f"{path.name}:{line}: this is not UTF-8, in which the file must be to be edited") from error


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Lets one change at a time happen. The folder is locked: the file may not be there, and each change puts another in its place."""
    handle = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ClientsFileError(f"{path.name} is being changed by another command for {_LOCK_SECONDS:g} s; try again") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)
