"""Clients as YAML, the way `convoy keys` writes them."""

from __future__ import annotations

import json
import re

import msgspec
import yaml

from services.clients.declared import Client, Key

NEW_FILE = """\
# Who may call Convoy; clients.example.yaml says all that can stand here. `convoy keys` edits it and leaves comments as they are.
# It holds no key, only the SHA-256 of each. A change is in force within a second, while everything runs.

# Classes of limits. `burst` requests may come at once; they come back evenly, `requests_per_minute` of them a minute.
limits:
  standard: {requests_per_minute: 300, burst: 30}

clients: []
"""
"""What a new clients file begins with: nobody may call."""

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def keys_of(client: Client) -> list[Key]:
    """Its keys, each with the end that is written for it."""
    return [key if isinstance(key, Key) else Key(key) for key in client.keys]


def _values(client: Client) -> dict[str, str]:
    """What is to be said of a client beside name and keys, as YAML: only what differs from what holds without a word."""
    given = msgspec.to_builtins(client)
    plain = msgspec.to_builtins(Client(name=client.name, keys=()))
    return {
        field: f"[{', '.join(_scalar(model) for model in value)}]" if field == "models" else _scalar(value)
        for field, value in given.items()
        if field not in {"name", "keys"} and value != plain[field]
    }


def in_block(client: Client, column: int) -> list[str]:
    """A client as the lines of an item whose dash stands in `column`."""
    rest = [f"{field}: {value}" for field, value in _values(client).items()]
    first, *others = [f"name: {_scalar(client.name)}", "keys:", *(f"- {_key(key)}" for key in keys_of(client)), *rest]
    return [" " * column + "- " + first, *(" " * (column + 2) + line for line in others)]


def in_flow(client: Client) -> str:
    """A client as `{name: …}`."""
    keys = ", ".join(_key(key) for key in keys_of(client))
    rest = "".join(f", {field}: {value}" for field, value in _values(client).items())
    return f"{{name: {_scalar(client.name)}, keys: [{keys}]{rest}}}"


def _key(key: Key) -> str:
    return f"{{sha256: {key.sha256}, expires: {key.expires}}}" if key.expires else _scalar(key.sha256)


def _scalar(value: str | int) -> str:
    """A value that every reader of YAML takes for what it is: text that would be a number, a boolean or nothing is quoted."""
    if isinstance(value, int):
        return str(value)
    is_plain = _DATE.match(value) or (":" not in value and isinstance(yaml.safe_load(value), str))
    return value if is_plain else json.dumps(value)
