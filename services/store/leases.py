"""Leases: how many of something a client holds at the same time, counted over all pods of a machine in one SQLite file.

A lease is given back, or expires when its owner has not renewed it: a pod that was killed holds nothing for long. All work is done on one
thread, many commands in one transaction, so the event loop never waits for a disk. Times are on `time.monotonic()`, which all processes
of a machine share and no clock change touches; a file from before the machine's last start is emptied.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
import uuid
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SCHEMA = """
CREATE TABLE IF NOT EXISTS boots (id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS leases (id TEXT PRIMARY KEY, client TEXT NOT NULL, owner TEXT NOT NULL, expires_at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS leases_by_client ON leases (client);
"""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BUSY_SECONDS = 0.5
_STOP_SECONDS = 2.0


class StoreError(Exception):
    """The store did not answer; the message says why."""


class Leases:
    """The leases that this process takes. One event loop, one thread of its own, one connection."""

    def __init__(self, path: Path, *, seconds: float = 10.0, answer_seconds: float = 1.0) -> None:
        """`path` is made if it is not there; a lease lasts `seconds` if it is not renewed; `take` waits `answer_seconds` at most."""
        self._path = path
        self._seconds = seconds
        self._answer_seconds = answer_seconds
        self._owner = f"{os.getpid()}-{uuid.uuid4()}"
        self._inbox: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._renew_at = 0.0
        self._held: list[_Command] = []

    async def take(self, client: str, limit: int) -> str | None:
        """A lease to be given back, or None if the client holds `limit` already. Raises `StoreError`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str | None] = loop.create_future()
        command = _Take(client, limit, lambda lease, error: _on_loop(loop, answer, lease, error))
        self._inbox.put(command)
        try:
            return await asyncio.wait_for(answer, self._answer_seconds)
        except asyncio.TimeoutError:
            command.is_unwanted = True
            raise StoreError(f"{self._path} did not answer within {self._answer_seconds:g} s") from None
        except asyncio.CancelledError:
            command.is_unwanted = True
            if answer.done() and not answer.cancelled() and answer.exception() is None and (lease := answer.result()):
                self.give_back(lease)
            raise

    def give_back(self, lease: str) -> None:
        """Ends a lease; returns at once."""
        self._inbox.put(_GiveBack(lease))

    async def stop(self) -> None:
        """Gives back whatever is left and ends the thread."""
        if self._thread is not None:
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join, _STOP_SECONDS)

    def _run(self) -> None:
        is_running = True
        while is_running:
            try:
                with closing(self._open()) as connection:
                    while is_running:
                        is_running = self._serve(connection)
                    connection.execute("DELETE FROM leases WHERE owner = ?", (self._owner,))
            except (sqlite3.Error, OSError) as error:  # noqa: PERF203 - not a fast loop
                is_running = self._refuse(f"{self._path}: {error}")

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")  # what a power failure takes would be void after it
        connection.executescript(_SCHEMA)
        boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "unknown"
        connection.execute("BEGIN IMMEDIATE")
        if not connection.execute("SELECT 1 FROM boots WHERE id = ?", (boot,)).fetchone():
            connection.execute("DELETE FROM leases")
            connection.execute("DELETE FROM boots")
            connection.execute("INSERT INTO boots VALUES (?)", (boot,))
        connection.execute("COMMIT")
        return connection

    def _serve(self, connection: sqlite3.Connection) -> bool:
        """One transaction with everything that has come; false when it shall end. Raises `sqlite3.Error` after having told everybody."""
        batch, is_running = self._batch(self._seconds / 3)
        try:
            connection.execute("BEGIN IMMEDIATE")
            now = time.monotonic()
            if now >= self._renew_at:
                self._renew_at = now + self._seconds / 3
                connection.execute("UPDATE leases SET expires_at = ? WHERE owner = ?", (now + self._seconds, self._owner))
                connection.execute("DELETE FROM leases WHERE expires_at <= ?", (now,))
            results = [command.carry_out(connection, self._owner, now, now + self._seconds) for command in batch]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            for command in batch:
                command.tell(None, f"{self._path}: {error}")
            raise
        for command, lease in zip(batch, results, strict=True):
            command.tell(lease, "")
            if lease and command.is_unwanted:
                self._inbox.put(_GiveBack(lease))
        return is_running

    def _refuse(self, reason: str) -> bool:
        """Tells those who asked that the file cannot be had, and waits for the next one, for whom it is tried again."""
        batch, is_running = self._batch(0)
        for command in batch:
            command.tell(None, reason)
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
    """Something to be done in a transaction, and who wants to know."""

    is_unwanted = False

    def carry_out(self, connection: sqlite3.Connection, owner: str, now: float, until: float) -> str | None:
        raise NotImplementedError

    def tell(self, lease: str | None, error: str) -> None:
        """Called once, on the store's thread."""


class _Take(_Command):
    def __init__(self, client: str, limit: int, tell: Callable[[str | None, str], None]) -> None:
        self._client, self._limit, self._tell = client, limit, tell

    def carry_out(self, connection: sqlite3.Connection, owner: str, now: float, until: float) -> str | None:
        if self.is_unwanted:
            return None
        held = connection.execute("SELECT count(*) FROM leases WHERE client = ? AND expires_at > ?", (self._client, now)).fetchone()[0]
        if held >= self._limit:
            return None
        lease = str(uuid.uuid4())
        connection.execute("INSERT INTO leases VALUES (?, ?, ?, ?)", (lease, self._client, owner, until))
        return lease

    def tell(self, lease: str | None, error: str) -> None:
        self._tell(lease, error)


class _GiveBack(_Command):
    def __init__(self, lease: str) -> None:
        self._lease = lease

    def carry_out(self, connection: sqlite3.Connection, owner: str, now: float, until: float) -> str | None:  # noqa: ARG002 - as of the base
        connection.execute("DELETE FROM leases WHERE id = ?", (self._lease,))
        return None


def _on_loop(loop: asyncio.AbstractEventLoop, answer: asyncio.Future[str | None], lease: str | None, error: str) -> None:
    def settle() -> None:
        if answer.done():
            return
        if error:
            answer.set_exception(StoreError(error))
        else:
            answer.set_result(lease)

    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(settle)
