"""An engine core that lives and dies with its pod, and with nobody else: made for a process that was forked from one that serves."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def follow_parent() -> None:
    """Has the kernel kill this process when the thread that started it has ended. Linux only; elsewhere it does nothing."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def leave_the_pod() -> None:
    """In a fresh fork of a pod: gives up what is the pod's alone, its connections and its signals.

    A listener that stayed open here would take connections that nobody answers; a signal to the group, or a byte in the shared wake-up
    pipe, would stop both.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if stat.S_ISSOCK(entry.stat().st_mode):
                _close_if_network(int(entry.name))
    follow_parent()


def _close_if_network(fd: int) -> None:
    family = socket.socket(fileno=os.dup(fd)).family
    if family in {socket.AF_INET, socket.AF_INET6}:
        os.close(fd)
