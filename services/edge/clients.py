"""Clients and limits become Envoy's files: the table of key hashes that `lua/keys.lua` reads, and the buckets of the two limiters."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from services.clients.declared import Client, Limits, unix_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from services.clients.declared import ClientsFile
    from services.edge.files import EnvoyFiles, Json
    from services.settings import EdgeSettings

DOCTOR_CLASS = "doctor"
"""The class of what `convoy doctor` calls with. It stands in limit_client.yaml, always: adding a class would fill everybody's bucket."""


def keys_script(files: EnvoyFiles, clients: ClientsFile | None, guests: Iterable[Client] = ()) -> str:
    """The program with the table in front of it; without a clients file the program alone, which then lets everybody in.

    `guests`: the doctor's clients.
    """
    program = files.keys_program
    if clients is None:
        return program
    classes = {**clients.classes(), DOCTOR_CLASS: _doctor_limits(files)}
    lines = [line for client in (*clients.clients, *guests) for line in _lines(client, classes[client.limit_class])]
    return f"CONVOY_CLIENTS = [==[\n{''.join(lines)}]==]\n{program}"


def _lines(client: Client, limits: Limits) -> list[str]:
    """A line for each key, in the order of FIELDS in keys.lua. No value has a tab or a bracket: their patterns do not allow it."""
    told = [client.name, client.role, client.limit_class, limits.requests_per_minute, limits.burst, client.max_concurrent_requests]
    told += [client.tokens_per_minute, client.max_priority, ",".join(client.models or ())]
    shared = "\t".join("" if value is None else str(value) for value in told)
    return [f"{key.sha256}\t{shared}\t{unix_seconds(key.expires) if key.expires else ''}\n" for key in client.all_keys()]


def keys(files: EnvoyFiles, script: Path) -> Json:
    """The filter `keys`, running `script`, whose name changes with its content."""
    response = deepcopy(files.keys)
    response["resources"][0]["typed_config"]["default_source_code"]["filename"] = str(script)
    return response


def limit_client(files: EnvoyFiles, clients: ClientsFile | None) -> Json:
    """A descriptor for each class of limits, beside the doctor's; off without a clients file."""
    response = deepcopy(files.limit_client)
    options = response["resources"][0]["typed_config"]
    _switch(options, is_on=clients is not None)
    if clients is not None:
        kept = [descriptor for descriptor in options["descriptors"] if _class_of(descriptor) == DOCTOR_CLASS]
        options["descriptors"] = [_descriptor(name, limits) for name, limits in sorted(clients.classes().items())] + kept
    return response


def limit_address(files: EnvoyFiles, clients: ClientsFile | None, settings: EdgeSettings) -> Json:
    """The bucket of each address; off without a clients file, where all calls are this machine's own."""
    response = deepcopy(files.limit_address)
    options = response["resources"][0]["typed_config"]
    _switch(options, is_on=clients is not None and settings.address_requests_per_second > 0)
    bucket = options["descriptors"][0]["token_bucket"]
    bucket |= {"max_tokens": settings.address_burst, "tokens_per_fill": max(1, settings.address_requests_per_second)}
    return response


def _doctor_limits(files: EnvoyFiles) -> Limits:
    descriptors = files.limit_client["resources"][0]["typed_config"]["descriptors"]
    bucket = next(item["token_bucket"] for item in descriptors if _class_of(item) == DOCTOR_CLASS)
    return Limits(bucket["tokens_per_fill"], bucket["max_tokens"])


def _switch(options: Json, *, is_on: bool) -> None:
    options["filter_enabled"]["default_value"]["numerator"] = 100 if is_on else 0


def _class_of(descriptor: Json) -> str:
    return str(descriptor["entries"][0].get("value", ""))


def _descriptor(name: str, limits: Limits) -> Json:
    return {
        "entries": [{"key": "class", "value": name}, {"key": "client"}],
        "token_bucket": {"max_tokens": limits.burst, "tokens_per_fill": limits.requests_per_minute, "fill_interval": "60s"},
    }
