"""Logs on a disk that is full, in a process of its own, whose limit of file sizes stands for the disk."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

WRITER = """
import resource, sys
from services.telemetry.logging import configure, get_logger

configure("info", sys.argv[1], "writer")
log, hard = get_logger(), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
log.info("disk.empty")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
for number in range(100):
    log.info("disk.full", number=number, text="y" * 100)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.info("disk.empty_again")
log.info("disk.empty_still")
"""


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("room", [0, 2000])
def test_records_without_room_are_lost_and_counted(tmp_path: Path, form: str, room: int) -> None:
    """No call fails, a line that was cut ends where it was cut, and the count of what is missing is exact."""
    path = tmp_path / "log"
    with path.open("w") as output:
        subprocess.run([sys.executable, "-c", WRITER, form, str(room)], stdout=output, check=True)
    lines = path.read_text().splitlines()
    whole = [line for line in lines if "disk.full" in line and "writer" in line and "y" * 100 in line]
    assert bool(whole) == bool(room)
    assert ["disk.empty_again" in lines[-3], "log.records_lost" in lines[-2], "disk.empty_still" in lines[-1]] == [True] * 3
    lost = 100 - len(whole)
    assert (f'"count":{lost},' if form == "json" else f"count={lost} ") in lines[-2]


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_device_without_room_fails_no_call(form: str) -> None:
    """As `/dev/full` from the first record on."""
    with open("/dev/full", "w") as output:  # noqa: PTH123 - a device
        ended = subprocess.run([sys.executable, "-c", WRITER, form, "0"], stdout=output, stderr=subprocess.PIPE, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
