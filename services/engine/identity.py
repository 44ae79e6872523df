"""Which process a number means: the kernel's own count of when it began, which no clock that people set can change."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

# Of /proc/PID/stat, behind the name in parentheses, which may hold anything: proc_pid_stat(5) numbers them 3 and 22.
_STATE, _START = 0, 19
_DEAD = {"Z", "X"}


def start_ticks(pid: int) -> int:
    """Clock ticks from the machine's start to the process's; 0 if there is none, or only what its parent has not fetched yet."""
    with suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if fields[_STATE] in _DEAD else int(fields[_START])
    return 0
