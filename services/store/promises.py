"""Who was told to return, and when: one line for all pods, whose places are with the clients, and expire.

Whoever returns as told has waited already, so it goes before those that come for the first time; a newcomer is told a time behind all of
them. All pods work on one line, since a client that waited may come to any of them. How many do return is learnt: for those who never will
nobody shall wait.
"""

from __future__ import annotations

import os
import random
import uuid
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    import sqlite3

    from services.store.sqlite import Store

# A refusal shall be quick; one that the store keeps waiting stays a refusal.
_ANSWER_SECONDS = 0.05
_LOOK_SECONDS = 1.0
# A pod that was killed serves nobody for longer.
_OWNER_SECONDS = 5.0
# Clients and networks are late by a little, and most clients know whole seconds only.
_GRACE_SECONDS = 2.0
_GRACE_SHARE = 0.25
_EARLY_SECONDS = 0.1
# Refused clients shall not come back together, nor much later than they could.
_JITTER_SHARE = 0.1
# Envoy asks the next pod at once.
_NEXT_POD_SECONDS = 1.0
_MAX_KEPT = 50_000
_LEARNING = 0.02


class Told(Struct, frozen=True):
    """What the line says to a request that a pod has no room for: come in so many `seconds`; or that this is its time, by which promise."""

    seconds: float
    promise: int = 0


class SharedPromises:
    """Promises of all pods, by the fingerprints of requests."""

    def __init__(self, store: Store, slots: int, *, answer_seconds: float = _ANSWER_SECONDS) -> None:
        """`slots` are those of this pod, which serve the line, too; `answer_seconds` is for tests."""
        self._answer_seconds = answer_seconds
        self._store = store
        self._slots = slots
        self._owner = f"{os.getpid()}-{uuid.uuid4()}"
        self.until = 0.0
        """When the work of all who are to return will be done, on the clock of `time.monotonic()`."""
        self.num_open = 0
        """How many are to return."""
        store.every(_LOOK_SECONDS, self._look, self._leave)

    async def tell(self, fingerprint: int, wait: float, seconds: float, *, was_told: bool) -> Told:
        """What a refused request is told: this pod would have a slot in `wait`, to be held for so many seconds.

        `was_told`: another pod has refused it a moment ago; it is told the same. Raises `StoreError`.
        """

        def work(connection: sqlite3.Connection, now: float) -> Told:
            is_open = "FROM promises WHERE fingerprint = ? AND NOT is_kept AND expires_at > ?"
            due = connection.execute(f"SELECT id {is_open} AND due_at <= ? ORDER BY due_at", (fingerprint, now, now)).fetchone()
            if due:
                return Told(0.0, due[0])
            same = f"SELECT due_at {is_open} AND made_at > ? ORDER BY id DESC"
            if was_told and (found := connection.execute(same, (fingerprint, now, now - _NEXT_POD_SECONDS)).fetchone()):
                return Told(found[0] + _EARLY_SECONDS - now)
            return self._promise(connection, fingerprint, wait, seconds, now)

        return await self._store.ask(work, self._answer_seconds)

    def renew(self, promise: int, wait: float) -> None:
        """One that returned in vain is told another time."""
        change = "UPDATE promises SET due_at = ?, expires_at = ? WHERE id = ?"
        self._store.tell(lambda connection, now: connection.execute(change, (*_window(wait, now), promise)))

    def keep(self, promise: int) -> None:
        """It was kept."""
        self._store.tell(lambda connection, _: connection.execute("UPDATE promises SET is_kept = 1 WHERE id = ?", (promise,)))

    def came(self, fingerprint: int) -> None:
        """A request had its slot without a question; perhaps it was told to come now."""
        if not self.num_open or not fingerprint:
            return
        kept = """UPDATE promises SET is_kept = 1 WHERE id =
            (SELECT id FROM promises WHERE fingerprint = ? AND NOT is_kept AND due_at <= ? AND expires_at > ? ORDER BY due_at)"""
        self._store.tell(lambda connection, now: connection.execute(kept, (fingerprint, now, now)))

    def _promise(self, connection: sqlite3.Connection, fingerprint: int, wait: float, seconds: float, now: float) -> Told:
        """A place at the end of the line, whose end moves by the work of those who do return."""
        until, due, came = connection.execute("SELECT until, due, came FROM line").fetchone()
        slots = connection.execute("SELECT sum(slots) FROM servers").fetchone()[0]
        told = max(wait, until - now)
        self.until = max(until, now + wait) + seconds * came / due / slots
        connection.execute("UPDATE line SET until = ?", (self.until,))
        told *= 1 + _JITTER_SHARE * random.random()
        if self.num_open < _MAX_KEPT:
            self.num_open += 1
            insert = "INSERT INTO promises (fingerprint, made_at, due_at, expires_at, is_kept) VALUES (?, ?, ?, ?, 0)"
            connection.execute(insert, (fingerprint, now, *_window(told, now)))
        return Told(told)

    def _look(self, connection: sqlite3.Connection, now: float) -> None:
        """Says that this pod serves, learns from what is over, and sees what the other pods have told."""
        connection.execute("INSERT OR REPLACE INTO servers VALUES (?, ?, ?)", (self._owner, self._slots, now + _OWNER_SECONDS))
        connection.execute("DELETE FROM servers WHERE expires_at <= ?", (now,))
        # Those who came are known sooner than those who never will, so both are counted when their time is over.
        count, kept = connection.execute("SELECT count(*), sum(is_kept) FROM promises WHERE expires_at <= ?", (now,)).fetchone()
        if count:
            connection.execute("DELETE FROM promises WHERE expires_at <= ?", (now,))
            _learn(connection, count, kept, now)
        self.until = connection.execute("SELECT until FROM line").fetchone()[0]
        self.num_open = connection.execute("SELECT count(*) FROM promises WHERE NOT is_kept").fetchone()[0]

    def _leave(self, connection: sqlite3.Connection, _: float) -> None:
        connection.execute("DELETE FROM servers WHERE owner = ?", (self._owner,))


def _learn(connection: sqlite3.Connection, count: int, kept: int, now: float) -> None:
    """Of so many promises so many were kept: the line is as long as that makes it."""
    until, due, came = connection.execute("SELECT until, due, came FROM line").fetchone()
    keep = (1 - _LEARNING) ** count
    weight = (1 - keep) / _LEARNING
    new_due, new_came = due * keep + weight, came * keep + weight * kept / count
    if until > now:
        until = now + (until - now) * min(1.0, new_came / new_due) / max(1e-6, came / due)
    connection.execute("UPDATE line SET until = ?, due = ?, came = ?", (until, new_due, new_came))


def _window(told: float, now: float) -> tuple[float, float]:
    """From when and until when a request that was told to return in `told` seconds does so."""
    return now + told - _EARLY_SECONDS, now + told * (1 + _GRACE_SHARE) + _GRACE_SECONDS
