"""Pods of an earlier runner, known only by their lines in the pods file: whether they live, and how they are told to end."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import signal

    from services.pods_file import PodEntry

# Between the pod's clock at its start and the kernel's record of it.
_CLOCK_SLACK_SECONDS = 5.0


def is_alive(entry: PodEntry) -> bool:
    """Whether the process is still this pod, and not another one with its number."""
    try:
        process = psutil.Process(entry.pid)
        same = abs(process.create_time() - entry.started_at) < _CLOCK_SLACK_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def send(entry: PodEntry, number: signal.Signals) -> None:
    """Signals the process, if it is still this pod."""
    if is_alive(entry):
        with suppress(ProcessLookupError):
            os.kill(entry.pid, number)
