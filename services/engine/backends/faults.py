"""Faults of the fake engine, for tests and drills: one for all pods from the start, or from a file, one by one, while they run.

The file names pods, or `*` for all others, and is replaced by rename: `{"engine-1": {"failure": "error", "prompt": "poison"}}`. A file that
is not there is no fault; one that cannot be read as meant is no fault either, and an error in the log.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from services.engine.generation import BackendError, BackendUnavailable
from services.telemetry.logging import get_logger

log = get_logger()

EXIT_CODE = 3
ALL_PODS = "*"

Failure = Literal["die", "error", "error_after_first_token", "exit", "freeze", "hang", "slow", "unavailable"]


class EngineDeath(Exception):
    """No error of a request: the loop that makes the steps ends by it."""


class Fault(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What goes wrong, and with which requests.

    `error` strikes requests without a token, `error_after_first_token` those with one; `hang` brings no token while it lasts, `slow` one in
    `factor` times the time; `exit` ends the process and `freeze` stops it for good (SIGSTOP), at a request or while one runs; `unavailable`
    turns new requests away as `not_ready` though the pod says that it is ready; `die` ends the engine and leaves the process. `prompt`
    limits it to requests whose prompt has that text.
    """

    failure: Failure
    prompt: str = ""
    factor: float | None = None

    def __post_init__(self) -> None:
        """A slow engine says how slow, and only that one."""
        if (self.failure == "slow") != (self.factor is not None) or (self.factor is not None and self.factor <= 0):
            raise ValueError("`slow` needs a `factor` above 0, and nothing else has one")

    @property
    def pace(self) -> float:
        """How fast the clock of a request goes that it strikes."""
        if self.failure == "hang":
            return 0.0
        return 1 / self.factor if self.factor else 1.0

    def strike_at_start(self) -> None:
        """What it does to a request that comes. Raises `BackendError`."""
        self._strike_process()
        if self.failure == "error":
            raise self._told()
        if self.failure == "unavailable":
            raise BackendUnavailable("the fake engine was told to be unavailable")

    def strike_running(self, num_tokens: int, *, is_due: bool) -> None:
        """What it does to a request that has `num_tokens` and may get more in this step. Raises `BackendError`."""
        self._strike_process()
        if self.failure == "die":
            raise EngineDeath("the fake engine was told to die")
        if (self.failure == "error" and not num_tokens) or (self.failure == "error_after_first_token" and num_tokens and is_due):
            raise self._told()

    def _strike_process(self) -> None:
        if self.failure == "exit":
            os._exit(EXIT_CODE)
        if self.failure == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)

    def _told(self) -> BackendError:
        return BackendError(f"the fake engine was told to fail ({self.failure})")


class Faults:
    """The fault of one pod as it is now."""

    def __init__(self, path: str, pod: str, always: str) -> None:
        """`path` of the file, empty for none; `always` is FAKE_FAILURE, which holds where the file says nothing of the pod."""
        self._path = Path(path) if path else None
        self._pod = pod
        # "load" is over before the first request, and "warm_up" with the pod's own one.
        failure = {"none": None, "load": None, "warm_up": "error"}.get(always, always)
        self._always = msgspec.convert({"failure": failure}, Fault) if failure else None
        self._fault = self._always
        self._seen: tuple[int, ...] = ()

    def now(self) -> Fault | None:
        """The fault that is on; looks whether the file was replaced."""
        if self._path is None:
            return self._fault
        seen = _state_of(self._path)
        if seen != self._seen:
            self._seen = seen
            fault = self._read(self._path) or self._always
            if fault != self._fault:
                log.warning("fault.changed", fault=msgspec.to_builtins(fault), was=msgspec.to_builtins(self._fault))
            self._fault = fault
        return self._fault

    def _read(self, path: Path) -> Fault | None:
        try:
            faults = msgspec.json.decode(path.read_bytes(), type=dict[str, Fault])
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            allowed = ", ".join(Failure.__args__)  # type: ignore[attr-defined]  # a Literal knows its values
            log.error("fault.broken_file", path=str(path), reason=str(error), allowed=allowed, now="no fault")  # noqa: TRY400 - reason is all
            return None
        return faults.get(self._pod, faults.get(ALL_PODS))


def _state_of(path: Path) -> tuple[int, ...]:
    """Differs whenever the file is another one than before."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return ()
    except OSError:
        return (-1,)  # there, and not for us: the attempt to read it will say why
    return stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size
