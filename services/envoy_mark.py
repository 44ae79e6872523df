"""A mark in Envoy's bootstrap by which it can be told later what a running Envoy was started with: Envoy repeats it in /server_info.

Its admin does not show its configuration, on purpose, and a file's time says little. Programs that Envoy reads at its start are part of it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NAME = "convoy_started_with"


def put(config: dict[str, Any]) -> None:
    """Marks a bootstrap with what it holds and with the programs that it names."""
    config["node"].setdefault("metadata", {})[_NAME] = mark_of(config)


def found_in(node: Mapping[str, Any]) -> str:
    """The mark of a node, as the bootstrap has it or as Envoy repeats it; empty if there is none."""
    return str(node.get("metadata", {}).get(_NAME, ""))


def mark_of(config: Mapping[str, Any]) -> str:
    """What the mark of a bootstrap should be, by what lies there now."""
    node = dict(config["node"])
    node["metadata"] = {name: value for name, value in node.get("metadata", {}).items() if name != _NAME}
    if not node["metadata"]:
        del node["metadata"]
    digest = hashlib.sha256(json.dumps({**config, "node": node}, sort_keys=True).encode())
    for path in sorted(set(_programs(config))):
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()[:32]


def _programs(value: Any) -> Iterator[Path]:
    """Every file that stands anywhere as a `filename`."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "filename":
                yield Path(inner)
            else:
                yield from _programs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _programs(inner)
