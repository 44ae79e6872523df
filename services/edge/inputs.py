"""What people decide, in files that may change at any time: `.env`, the clients file, `envoy/`, and the doctor's guests.

Each is read again when it is another one. One that is wrong keeps what it said before, and what is wrong with it is told.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import yaml

from services.clients import guests, reading
from services.clients.guests import Guests, GuestsError
from services.clients.reading import ClientsFileError
from services.edge.files import FILE_NAMES, EnvoyFiles, read_file
from services.settings import SettingsError, env_file_of, load_again
from services.settings.reader import environment_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from services.clients.declared import ClientsFile
    from services.settings import EdgeSettings

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """All that Envoy's files are made from, but the pods. `keeps_clients`: who may call is not known now, so what is written stays."""

    settings: EdgeSettings
    files: EnvoyFiles
    clients: ClientsFile | None = None
    guests: Guests = guests.NOBODY
    keeps_clients: bool = False


class Part(Generic[T]):
    """One file: the value that counts, and what is wrong with what it holds now."""

    def __init__(self, path: Path, read: Callable[[Path], T], value: T) -> None:
        """`read` raises `OSError`, `ValueError` or `yaml.YAMLError` for what cannot be used. `value` counts until `accept`."""
        self.path = path.absolute()
        self.value = value
        self.error = ""
        self.sha256 = ""
        """Of the bytes whose value counts."""
        self.judged = ""
        """Likewise of the bytes that were last found good or bad: what is told is about them."""
        self._read = read
        self._seen: object = ()
        self._fresh: tuple[T, str] | None = None

    def look(self) -> bool:
        """Reads the file if it is another one than at the last look; whether it then has a value that waits to be accepted."""
        seen = _signature(self.path)
        if seen == self._seen:
            return False
        self._seen = seen
        digest = ""
        try:
            digest = hashlib.sha256(self.path.read_bytes()).hexdigest() if seen else ""
            self._fresh = (self._read(self.path), digest)
        except (OSError, ValueError, yaml.YAMLError) as error:
            self._fresh = None
            self.judged = digest
            self.error = in_words(error, self.path)
            return False
        return True

    def forget(self) -> None:
        """The next look reads the file whatever it is: its value depends on the time, too."""
        self._seen = ()

    @property
    def newest(self) -> T:
        """The value that waits, or the one that counts."""
        return self._fresh[0] if self._fresh else self.value

    def accept(self) -> None:
        """The value that waits counts from now on."""
        if self._fresh:
            (self.value, self.sha256), self.error = self._fresh, ""
            self.judged, self._fresh = self.sha256, None

    def refuse(self, reason: str) -> None:
        """The value that waits is dropped."""
        if self._fresh:
            self.judged, self._fresh = self._fresh[1], None
            self.error = f"{self.path.name}: {reason}"


class Inputs:
    """All parts together."""

    def __init__(self, settings: EdgeSettings, envoy_dir: Path, *, had_clients: bool = False) -> None:
        """`settings` as the process began with. `had_clients`: what was written last knows clients, so that a missing file is a mistake."""
        state_dir = Path(settings.state_dir)
        self._had_clients = had_clients
        self._files: dict[str, Part[Any]] = {field: Part(envoy_dir / name, read_file, None) for field, name in FILE_NAMES.items()}
        self._clients: Part[ClientsFile | None] = Part(Path(settings.clients_file).expanduser(), self._read_clients, None)
        self._guests: Part[Guests] = Part(state_dir / guests.NAME, guests.read, guests.NOBODY)
        env_file = env_file_of()
        self._settings: Part[EdgeSettings] = Part(
            env_file or Path(".env"),
            lambda path: load_again(type(settings), path, environment_of("edge")) if env_file else settings,
            settings,
        )

    @property
    def parts(self) -> list[Part[Any]]:
        """Every file."""
        return [self._settings, self._clients, self._guests, *self._files.values()]

    @property
    def clients_part(self) -> Part[ClientsFile | None]:
        """The clients file."""
        return self._clients

    def look(self) -> list[Part[Any]]:
        """The parts that have a new value; `errors` then tells of those that are wrong."""
        if self._guests.value.until and time.time() > self._guests.value.until:
            self._guests.forget()
        return [part for part in self.parts if part.look()]

    def errors(self) -> dict[str, str]:
        """What is wrong, by path."""
        return {str(part.path): part.error for part in self.parts if part.error}

    def wanted(self) -> Wanted:
        """What the newest values say together."""
        files = EnvoyFiles(**{field: part.newest for field, part in self._files.items()})
        known = self._clients.newest
        keeps = known is None and bool(self._clients.error)
        return Wanted(self._settings.newest, files, known, self._guests.newest, keeps)

    def _read_clients(self, path: Path) -> ClientsFile | None:
        if path.exists():
            return reading.read(path)
        if self._had_clients or self._clients.value is not None:
            raise ClientsFileError(
                f"{path.name} is gone; the clients that were known stay. To let everybody in, on loopback: `convoy down`, then `convoy up`"
            )
        return None


def in_words(error: Exception, path: Path) -> str:
    """One line with file, line (where one is known) and reason."""
    if isinstance(error, ClientsFileError | SettingsError | GuestsError):
        return str(error)
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"{path.name}:{mark.line + 1}: {getattr(error, 'problem', error)}"
    if isinstance(error, PermissionError):
        return f"{path.name}: the edge (user id {os.geteuid()}) may not read it; for containers see Keys in README.md"
    return f"{path.name}: {' '.join(str(error).split())}"


def blame(parts: Iterable[Part[Any]], reason: str) -> None:
    """Refuses the new values of all `parts`, for Envoy (or the rendering) refuses them together; names the line where it can be found."""
    for part in parts:
        line = _line_of(reason, part.path)
        part.refuse(f"line {line}: {reason}" if line else reason)


def _line_of(reason: str, path: Path) -> int:
    """The one line of a file that has a word which the reason quotes; 0 if there is none, or are several."""
    words = {word for pair in re.findall(r"'([^']{3,80})'|\"([^\"]{3,80})\"", reason) for word in pair if word}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return 0
    found = {number for number, line in enumerate(lines, 1) for word in words if word in line}
    return found.pop() if len(found) == 1 else 0


def _signature(path: Path) -> tuple[int, ...] | None:
    """Another one for another file or content, and for another mode: who could not read it may be able to now."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino
