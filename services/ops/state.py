"""The state folder (`STATE_DIR`): where each file lies and how it is read. Nothing here starts, stops or asks a process."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import Struct

from services import pods_file, pods_wanted
from services.files import write_atomically
from services.ops import envoy_record
from services.ops.envoy_record import EnvoyRecord
from services.pods_file import PodsFile
from services.settings.reader import given_path

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: working folder of every process, home of `.env` and of a relative `STATE_DIR`."""

PROGRAMS = ("envoy", "edge", "runner")
"""What serves. All else that is supervised watches, and may fail."""

# sockaddr_un holds 108 bytes. supervisord first binds a name with its process id appended; Envoy's names are longer by up to 16 bytes.
_MAX_SOCKET_PATH_BYTES = 88


class OpsError(Exception):
    """What stops a command: one readable line that names the cure. It ends `convoy` with exit code 1."""


class History(Struct, frozen=True):
    """How often the supervisor started a program again, how its last process ended, and whether it was left at that."""

    restarts: int = 0
    last_exit: str = ""
    is_over: bool = False


class Run(Struct, frozen=True):
    """A started stack: what its addresses are and which settings matter to who looks at it or stops it."""

    url: str
    host: str
    port: int
    admin_port: int
    pid: int
    started_at: float
    engine: str
    model_name: str
    pods: int
    drain_timeout_seconds: float
    parts: dict[str, str] = {}
    """What watches the stack: address by name."""


@dataclass(frozen=True)
class StateDir:
    """The paths in one state folder."""

    path: Path

    @property
    def logs(self) -> Path:
        """Folder of all log files."""
        return self.path / "logs"

    @property
    def config(self) -> Path:
        """The supervisor's configuration."""
        return self.path / "supervisord.conf"

    @property
    def socket(self) -> Path:
        """The supervisor's socket; in the system's temporary folder where the state folder's path is too long for one."""
        inside = self.path / "supervisor.sock"
        if len(os.fsencode(inside)) <= _MAX_SOCKET_PATH_BYTES:
            return inside
        return Path(tempfile.gettempdir()) / f"convoy-{_digest(self.path)}" / "s"

    @property
    def envoy_sockets(self) -> Path:
        """Folder in which an old and a new Envoy talk during a hot restart; beside the supervisor's socket."""
        return self.socket.parent / "envoy"

    @property
    def base_id(self) -> int:
        """Envoy's `--base-id`, one per state folder, so that two clones on one machine never share memory.

        Envoy multiplies it by ten in 32 bits, and names its sockets by that as a signed number, hence 27 bits.
        """
        return int(_digest(self.path)[:7], 16) >> 1 or 1

    def run(self) -> Run | None:
        """The run that was started here last, or None after `down`."""
        return _read(self.path / "run.json", Run)

    def write_run(self, run: Run) -> None:
        """Writes run.json, whole or not at all."""
        write_atomically(self.path / "run.json", msgspec.json.encode(run))

    def pods(self) -> PodsFile:
        """The runner's pods file; empty before the runner wrote one."""
        return _read(self.path / pods_file.NAME, PodsFile) or PodsFile(())

    def envoy(self) -> EnvoyRecord:
        """What Envoy's parent says of its Envoys; empty before it said anything."""
        return _read(self.path / envoy_record.NAME, EnvoyRecord) or EnvoyRecord()

    def histories(self) -> dict[str, History]:
        """Restarts of runner, edge and envoy: of Envoy itself by its parent, or of the parent by the supervisor."""
        found = _read(self.path / "programs.json", dict[str, History]) or {}
        envoy, parent = self.envoy(), found.get("envoy")
        if parent:
            found["envoy"] = History(parent.restarts + envoy.restarts, envoy.last_exit or parent.last_exit, parent.is_over)
        return found

    def num_clients(self) -> int | None:
        """How many clients the edge knows; None where it asks for no key, or has not said yet."""
        told = _read(self.path / "edge.json", dict[str, Any])
        return (told or {}).get("num_clients")

    def create(self) -> None:
        """Makes the folders; raises `OpsError` where that is not allowed."""
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            self.socket.parent.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise OpsError(f"STATE_DIR={self.path} cannot be written ({error.strerror}); choose another folder") from error

    def clear(self) -> None:
        """Removes what only a running stack needs; logs and Envoy's rendered files stay."""
        for name in (
            "run.json",
            pods_file.NAME,
            "programs.json",
            envoy_record.NAME,
            "edge.json",
            "begun.json",
            pods_wanted.NUMBER_NAME,
            pods_wanted.RESTART_NAME,
            given_path(self.path, "runner").name,
            given_path(self.path, "edge").name,
            "supervisord.conf",
            "supervisord.pid",
        ):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.envoy_sockets, ignore_errors=True)
        self.socket.unlink(missing_ok=True)
        if self.socket.parent != self.path:
            shutil.rmtree(self.socket.parent, ignore_errors=True)
        # Envoy leaves its shared memory behind, even when it ends in good order.
        Path(f"/dev/shm/envoy_shared_memory_{self.base_id * 10}").unlink(missing_ok=True)  # noqa: S108 - the name is Envoy's

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lets one `up` or `down` at a time change what runs; raises `OpsError` while another does."""
        handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise OpsError(f"another `convoy up`, `down` or `restart` is at work in {self.path}; wait until it is done") from error
        finally:
            os.close(handle)


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise OpsError(f"{path} is damaged ({error}); run `convoy down`, then `convoy up`") from error


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
