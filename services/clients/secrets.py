"""Keys: how they are made and hashed. A key is shown once, to who made it, and stored nowhere."""

from __future__ import annotations

import hashlib
import secrets

PREFIX = "sk-convoy-"
"""Lets people, and scanners for secrets, see what it is."""


def new_key() -> str:
    """A key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """What a clients file holds of a key. A plain hash is enough: nobody guesses 256 random bits."""
    return hashlib.sha256(key.encode()).hexdigest()
