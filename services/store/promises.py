"""Who was told to return, and when, whichever pod said so: a client that waited as told may come to another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

    from services.store.sqlite import Store

# A refusal shall be quick; one that the store keeps waiting stays a refusal.
_ANSWER_SECONDS = 0.05
_CHORE_SECONDS = 5.0
_PROMISE = "INSERT OR REPLACE INTO promises VALUES (?, ?, ?)"


class SharedPromises:
    """Promises of all pods, by the fingerprints of requests."""

    def __init__(self, store: Store) -> None:
        """Forgets by itself what has expired."""
        self._store = store
        store.every(_CHORE_SECONDS, _forget)

    async def recall(self, fingerprint: int, due_at: float, expires_at: float) -> bool:
        """Whether a request returns as it was told; if not, it is told the new time. Raises `StoreError`."""

        def work(connection: sqlite3.Connection, now: float) -> bool:
            is_due = "SELECT 1 FROM promises WHERE fingerprint = ? AND due_at <= ? AND expires_at > ?"
            if connection.execute(is_due, (fingerprint, now, now)).fetchone():
                return True
            connection.execute(_PROMISE, (fingerprint, due_at, expires_at))
            return False

        return await self._store.ask(work, _ANSWER_SECONDS)

    def renew(self, fingerprint: int, due_at: float, expires_at: float) -> None:
        """One that returned in vain is told another time."""
        self._store.tell(lambda connection, _: connection.execute(_PROMISE, (fingerprint, due_at, expires_at)))

    def keep(self, fingerprint: int) -> None:
        """Ends a promise that was kept."""
        self._store.tell(lambda connection, _: connection.execute("DELETE FROM promises WHERE fingerprint = ?", (fingerprint,)))


def _forget(connection: sqlite3.Connection, now: float) -> None:
    connection.execute("DELETE FROM promises WHERE expires_at <= ?", (now,))
