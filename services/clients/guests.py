"""The doctor's guests: a lane of Envoy that only `convoy doctor` can use, and clients of its own, for as long as it works.

`STATE_DIR/doctor.json`, written by `convoy doctor`. The lane is a copy of the pool's cluster and routes, so that a policy can be seen to
act on pods that are broken on purpose while no client's request ever meets them. A doctor that died leaves nothing: `until` ends it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta, Struct

from services.clients.declared import Client
from services.pods_file import PodEntry

if TYPE_CHECKING:
    from pathlib import Path

NAME = "doctor.json"


class GuestsError(ValueError):
    """A doctor's file that cannot be used."""


class Guests(Struct, frozen=True, forbid_unknown_fields=True):
    """`token` opens the lane as the header x-doctor-lane; `until` in Unix seconds. Clients have the class `doctor`.

    `max_requests` is the lane's own, so that its breaker can be seen to open without as many requests as the pool may hold.
    """

    token: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{16,64}$|^$")] = ""
    until: float = 0.0
    pods: tuple[PodEntry, ...] = ()
    clients: tuple[Client, ...] = ()
    max_requests: Annotated[int, Meta(ge=1)] | None = None


NOBODY = Guests()


def read(path: Path) -> Guests:
    """The guests of now; nobody if the file is missing or its time is over. Raises `GuestsError`, `OSError`."""
    if not path.exists():
        return NOBODY
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Guests)
    except msgspec.DecodeError as error:
        raise GuestsError(f"{path.name}: {error}") from error
    return found if found.until > time.time() else NOBODY
