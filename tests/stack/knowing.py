"""Clients files for tests: who is known, by a key that is told from the name."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def key_of(name: str) -> str:
    """A client's key, as a caller sends it."""
    return f"sk-convoy-test-{name}"


def hash_of(name: str) -> str:
    """What the clients file holds of it."""
    return hashlib.sha256(key_of(name).encode()).hexdigest()


def bearer(name: str) -> dict[str, str]:
    """The header with which a client calls."""
    return {"authorization": f"Bearer {key_of(name)}"}


def clients_file(clients: Mapping[str, str], limits: str = "standard: {requests_per_minute: 60000, burst: 1000}") -> str:
    """A clients file: name -> more fields of the client in flow style (`role: ops, class: batch`). Limits are lines below `limits:`."""
    head = "limits:\n" + "".join(f"  {line}\n" for line in limits.splitlines())
    return head + "clients:\n" + "".join(f"- {{name: {name}, keys: [{hash_of(name)}], {more}}}\n" for name, more in clients.items())
