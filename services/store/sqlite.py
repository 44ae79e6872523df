"""A SQLite file that several processes of one machine share, worked on by one thread of each: the event loop never waits for a disk.

What has come meanwhile is done in one transaction, so many small questions cost little. Times are on `time.monotonic()`, which all
processes of a machine share and no clock change touches; a file from before the machine's last start is emptied.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    Work = Callable[[sqlite3.Connection, float], Any]
    """What is done in a transaction, at a time."""

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS boots (id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS leases (id TEXT PRIMARY KEY, client TEXT NOT NULL, owner TEXT NOT NULL, expires_at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS leases_by_client ON leases (client);
CREATE TABLE IF NOT EXISTS promises (id INTEGER PRIMARY KEY, fingerprint INTEGER NOT NULL, made_at REAL NOT NULL, due_at REAL NOT NULL,
    expires_at REAL NOT NULL, is_kept INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS promises_by_fingerprint ON promises (fingerprint);
CREATE INDEX IF NOT EXISTS promises_by_end ON promises (expires_at);
CREATE TABLE IF NOT EXISTS servers (owner TEXT PRIMARY KEY, slots INTEGER NOT NULL, expires_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS line (until REAL NOT NULL, due REAL NOT NULL, came REAL NOT NULL);
"""
_TABLES = ("leases", "promises", "servers", "line", "boots")
# Until it is known better, everybody is taken to return, as sure as of so many.
_LINE = "INSERT INTO line SELECT 0, 50, 50 WHERE NOT EXISTS (SELECT 1 FROM line)"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BUSY_SECONDS = 0.5
_RETRY_SECONDS = 0.01
_STOP_SECONDS = 2.0


class StoreError(Exception):
    """The store did not answer; the message says why."""


class Store:
    """One process's way to the file: one event loop, one thread, one connection, opened with the first question."""

    def __init__(self, path: Path) -> None:
        """`path` is made if it is not there."""
        self.path = path
        self._inbox: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._chores: list[tuple[float, Work]] = []
        self._due: list[float] = []
        self._farewells: list[Work] = []
        self._held: list[_Command] = []

    def every(self, seconds: float, work: Work, farewell: Work | None = None) -> None:
        """Has something done so often while the store is in use, and before it is closed; to be told before the first question."""
        self._chores.append((seconds, work))
        self._due.append(0.0)
        if farewell is not None:
            self._farewells.append(farewell)

    async def ask(self, work: Callable[[sqlite3.Connection, float], T], within: float, undo: Callable[[T], None] = lambda _: None) -> T:
        """What `work` finds; what it finds too late, or for nobody, goes to `undo` (on any thread). Raises `StoreError`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="store", daemon=True)
            self._thread.start()
        command = _Command(work, asyncio.get_running_loop(), undo)
        self._inbox.put(command)
        try:
            return await asyncio.wait_for(command.answer, within)
        except asyncio.TimeoutError:
            raise StoreError(f"{self.path} did not answer within {within:g} s") from None
        finally:
            command.leave()

    def tell(self, work: Work) -> None:
        """Has something done that nobody waits for."""
        self._inbox.put(_Command(work, None, lambda _: None))

    async def stop(self) -> None:
        """Ends the thread, with its farewells."""
        if self._thread is not None:
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join, _STOP_SECONDS)

    def _run(self) -> None:
        is_running = True
        while is_running:
            try:
                with closing(self._open_beside_others()) as connection:
                    while is_running:
                        is_running = self._serve(connection)
                    for farewell in self._farewells:
                        farewell(connection, time.monotonic())
            except (sqlite3.Error, OSError) as error:  # noqa: PERF203 - not a fast loop
                is_running = self._refuse(f"{self.path}: {error}")

    def _open_beside_others(self) -> sqlite3.Connection:
        """Pods that begin together open a new file together; SQLite does not wait while another one makes it a WAL."""
        until = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                return self._open()
            except sqlite3.OperationalError as error:  # noqa: PERF203 - not a fast loop
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(_RETRY_SECONDS)

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")  # what a power failure takes would be void after it
        boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "unknown"
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        if not connection.execute("SELECT 1 FROM boots WHERE id = ?", (boot,)).fetchone():
            for table in _TABLES:
                connection.execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own
            connection.execute("INSERT INTO boots VALUES (?)", (boot,))
        connection.execute(_LINE)
        connection.execute("COMMIT")
        return connection

    def _serve(self, connection: sqlite3.Connection) -> bool:
        """One transaction with everything that has come; false when it shall end. Raises `sqlite3.Error` after having told everybody."""
        batch, is_running = self._batch(min((seconds for seconds, _ in self._chores), default=None))
        try:
            connection.execute("BEGIN IMMEDIATE")
            now = time.monotonic()
            for number, (seconds, work) in enumerate(self._chores):
                if now >= self._due[number]:
                    self._due[number] = now + seconds
                    work(connection, now)
            results = [None if command.is_unwanted else command.work(connection, now) for command in batch]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            for command in batch:
                command.settle(None, f"{self.path}: {error}")
            raise
        for command, result in zip(batch, results, strict=True):
            command.settle(result, "")
        return is_running

    def _refuse(self, reason: str) -> bool:
        """Tells those who asked that the file cannot be had, and waits for the next one, for whom it is tried again."""
        batch, is_running = self._batch(0)
        for command in batch:
            command.settle(None, reason)
        if is_running and not batch:
            self._held, is_running = self._batch(None)
        return is_running

    def _batch(self, timeout_seconds: float | None) -> tuple[list[_Command], bool]:
        """What has come, waiting for something if there is nothing; and whether to go on."""
        commands, self._held = self._held, []
        if commands:
            return commands, True
        with suppress(queue.Empty):
            command = self._inbox.get(timeout=timeout_seconds)
            while command is not None:
                commands.append(command)
                command = self._inbox.get_nowait()
            return commands, False
        return commands, True


class _Command:
    """Something to be done in a transaction, and who wants to know (nobody, without a loop)."""

    def __init__(self, work: Work, loop: asyncio.AbstractEventLoop | None, undo: Callable[[Any], None]) -> None:
        self.work = work
        self.is_unwanted = False
        self._loop = loop
        self._undo = undo
        if loop is not None:
            self.answer: asyncio.Future[Any] = loop.create_future()

    def leave(self) -> None:
        """Who asked is gone, or has the answer."""
        self.is_unwanted = True
        if self.answer.done() and not self.answer.cancelled():
            self.answer.exception()  # somebody has, or nobody will have, seen it

    def settle(self, result: object, error: str) -> None:
        """Called once, on the store's thread."""
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._answer, result, error)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self._undo(result)

    def _answer(self, result: object, error: str) -> None:
        if self.answer.done():
            self._undo(result)
        elif error:
            self.answer.set_exception(StoreError(error))
        else:
            self.answer.set_result(result)
