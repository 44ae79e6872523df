from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from services.clients.reading import ClientsFileError
from services.clients.saving import change

if TYPE_CHECKING:
    from pathlib import Path


def mode(path: Path) -> int:
    """A file's permissions."""
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_is_its_owners_alone_and_another_keeps_its_mode(tmp_path: Path) -> None:
    """Whatever the umask."""
    path = tmp_path / "clients.yaml"
    assert change(path, lambda text: f"{text}\n") == b"None\n"
    assert mode(path) == 0o600
    path.chmod(0o664)
    before = os.umask(0o077)
    try:
        change(path, lambda text: f"{text}more\n")
    finally:
        os.umask(before)
    assert mode(path) == 0o664
    assert path.read_bytes() == b"None\nmore\n"
    assert [found.name for found in tmp_path.iterdir()] == ["clients.yaml"]


def test_line_ends_and_byte_order_mark_stay(tmp_path: Path) -> None:
    """The text is given without the mark, for places in it are counted."""
    path = tmp_path / "clients.yaml"
    path.write_bytes(b"\xef\xbb\xbfa\r\n")
    seen: list[str | None] = []
    change(path, lambda text: seen.append(text) or f"{text}b\r\n")  # type: ignore[func-returns-value]
    assert seen == ["a\r\n"]
    assert path.read_bytes() == b"\xef\xbb\xbfa\r\nb\r\n"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """What it leads to is changed."""
    real, link = tmp_path / "real.yaml", tmp_path / "clients.yaml"
    real.write_text("a")
    link.symlink_to(real)
    change(link, lambda text: f"{text}b")
    assert link.is_symlink()
    assert real.read_text() == "ab"


def test_what_fails_leaves_the_file(tmp_path: Path) -> None:
    """An edit that is refused, and a file that is not UTF-8."""
    path = tmp_path / "clients.yaml"
    path.write_bytes(b"ok\ncaf\xe9\n")
    with pytest.raises(ClientsFileError, match=r"^clients\.yaml:2: this is not UTF-8"):
        change(path, lambda text: f"{text}")
    path.write_bytes(b"ok\n")

    def refuse(_text: str | None) -> str:
        raise ClientsFileError("no")

    with pytest.raises(ClientsFileError, match=r"^no$"):
        change(path, refuse)
    assert path.read_bytes() == b"ok\n"


def test_edits_at_once_all_count(tmp_path: Path) -> None:
    """Each sees what the one before it wrote, the first that makes the file included."""
    path = tmp_path / "clients.yaml"
    start = threading.Barrier(8)

    def add_line(number: int) -> None:
        start.wait()
        change(path, lambda text: f"{text or ''}{number}\n")

    threads = [threading.Thread(target=add_line, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.read_text().split()) == [str(number) for number in range(8)]
