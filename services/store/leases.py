"""Leases: how many of something a client holds at the same time, counted over all pods.

A lease is given back, or expires when its owner has not renewed it: a pod that was killed holds nothing for long.
"""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

    from services.store.sqlite import Store

_ANSWER_SECONDS = 1.0


class Leases:
    """The leases that this process takes."""

    def __init__(self, store: Store, *, seconds: float = 10.0) -> None:
        """A lease lasts `seconds` if it is not renewed."""
        self._store = store
        self._seconds = seconds
        self._owner = f"{os.getpid()}-{uuid.uuid4()}"
        store.every(seconds / 3, self._renew, self._give_all_back)

    async def take(self, client: str, limit: int) -> str | None:
        """A lease to be given back, or None if the client holds `limit` already. Raises `StoreError`."""

        def work(connection: sqlite3.Connection, now: float) -> str | None:
            count = "SELECT count(*) FROM leases WHERE client = ? AND expires_at > ?"
            if connection.execute(count, (client, now)).fetchone()[0] >= limit:
                return None
            lease = str(uuid.uuid4())
            connection.execute("INSERT INTO leases VALUES (?, ?, ?, ?)", (lease, client, self._owner, now + self._seconds))
            return lease

        return await self._store.ask(work, _ANSWER_SECONDS, undo=self.give_back)

    def give_back(self, lease: str | None) -> None:
        """Ends a lease; returns at once."""
        if lease is not None:
            self._store.tell(lambda connection, _: connection.execute("DELETE FROM leases WHERE id = ?", (lease,)))

    def _renew(self, connection: sqlite3.Connection, now: float) -> None:
        connection.execute("UPDATE leases SET expires_at = ? WHERE owner = ?", (now + self._seconds, self._owner))
        connection.execute("DELETE FROM leases WHERE expires_at <= ?", (now,))

    def _give_all_back(self, connection: sqlite3.Connection, _: float) -> None:
        connection.execute("DELETE FROM leases WHERE owner = ?", (self._owner,))
