"""What `convoy keys list` shows: clients as a table or as JSON, with what has ended by now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from rich.table import Table
from rich.text import Text

from services.clients.declared import unix_seconds

if TYPE_CHECKING:
    from pathlib import Path

    from services.clients.declared import ClientsFile, Key

_SHOWN_HASH = 8


def table(found: ClientsFile, now: float) -> Table:
    """A row for each client."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "role", "class", "keys", "models", "priority", "tokens/min", "concurrent", "expires"):
        result.add_column(column, no_wrap=True, justify="right" if column in {"tokens/min", "concurrent"} else "left")
    classes = found.classes()
    for client in found.clients:
        limits = classes[client.limit_class]
        keys = [_key(key, now) for key in client.all_keys()]
        result.add_row(
            Text(client.name),
            Text(client.role),
            Text(f"{client.limit_class} ({limits.requests_per_minute}/min, burst {limits.burst})"),
            Text("\n").join(keys) if keys else Text("none", "yellow"),
            Text("all" if client.models is None else ", ".join(client.models)),
            Text(client.max_priority),
            Text("-" if client.tokens_per_minute is None else f"{client.tokens_per_minute}"),
            Text("-" if client.max_concurrent_requests is None else f"{client.max_concurrent_requests}"),
            _end(client.expires, now) if client.expires else Text("never"),
        )
    return result


def as_json(path: Path, found: ClientsFile, now: float, *, is_there: bool) -> str:
    """The same for programs: fields by their names in the file, hashes whole."""
    classes = found.classes()
    clients: list[dict[str, Any]] = []
    for client in found.clients:
        keys = [{"sha256": key.sha256, "expires": key.expires, "expired": _is_past(key.expires, now)} for key in client.all_keys()]
        limits = msgspec.to_builtins(classes[client.limit_class])
        clients.append({**msgspec.to_builtins(client), "keys": keys, "limits": limits, "expired": _is_past(client.expires, now)})
    return msgspec.json.encode({"file": str(path), "exists": is_there, "clients": clients}).decode()


def _key(key: Key, now: float) -> Text:
    """`97c24b4b until 2027-01-31`."""
    shown = Text(key.sha256[:_SHOWN_HASH])
    if key.expires is None:
        return shown
    return Text.assemble(shown, " " if _is_past(key.expires, now) else " until ", _end(key.expires, now))


def _end(moment: str, now: float) -> Text:
    return Text(f"expired {moment}", "red") if _is_past(moment, now) else Text(moment)


def _is_past(moment: str | None, now: float) -> bool:
    return moment is not None and unix_seconds(moment) <= now
