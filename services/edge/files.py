"""Envoy's files as data: read from `envoy/`, written whole into the state folder. Knows nothing of what they mean."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from services.files import write_atomically

Json = dict[str, Any]
"""A JSON object: one of Envoy's files, or a part of one."""

ENVOY_DIR = Path(__file__).resolve().parents[2] / "envoy"
"""The folder of the checkout whose files validate as they lie."""


class EnvoyYamlLoader(yaml.SafeLoader):
    """YAML as Envoy reads it: keys tagged `!ignore` hold anchors and are left out."""


def _construct_mapping(loader: EnvoyYamlLoader, node: yaml.MappingNode) -> Json:
    node.value = [(key, value) for key, value in node.value if key.tag != "!ignore"]
    return {str(key): value for key, value in loader.construct_mapping(node, deep=True).items()}


EnvoyYamlLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


@dataclass(frozen=True)
class EnvoyFiles:
    """The files of `envoy/`: the bootstrap, the discovery responses, and the program that looks keys up."""

    bootstrap: Json
    routes: Json
    clusters: Json
    endpoints: Json
    keys: Json
    limit_address: Json
    limit_client: Json
    keys_program: str

    @classmethod
    def load(cls, folder: Path = ENVOY_DIR) -> EnvoyFiles:
        """Reads them all; raises `OSError`, `yaml.YAMLError`."""
        return cls(**{field: read_file(folder / name) for field, name in FILE_NAMES.items()})  # type: ignore[arg-type] # see FILE_NAMES


FILE_NAMES = {
    "bootstrap": "envoy.yaml",
    "routes": "routes.yaml",
    "clusters": "clusters.yaml",
    "endpoints": "endpoints.yaml",
    "keys": "keys.yaml",
    "limit_address": "limit_address.yaml",
    "limit_client": "limit_client.yaml",
    "keys_program": "lua/keys.lua",
}
"""Each field of `EnvoyFiles` and its file, below `envoy/`."""


def read_file(path: Path) -> Json | str:
    """One of these files: a mapping, or a program's text. Raises `OSError`, `yaml.YAMLError`."""
    return read_yaml(path) if path.suffix == ".yaml" else path.read_text(encoding="utf-8")


def read_yaml(path: Path) -> Json:
    """One YAML (or JSON) file whose top is a mapping."""
    data = yaml.load(path.read_text(encoding="utf-8"), EnvoyYamlLoader)  # noqa: S506 - a SafeLoader with one tag more
    if not isinstance(data, dict):
        raise yaml.YAMLError(f"{path}: the top must be a mapping")
    return data


def read_json(path: Path) -> Json | None:
    """A file written by `write_json`, or None if there is none or it is broken (it is about to be written anew)."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def write_json(path: Path, data: Json | list[Json]) -> None:
    """Replaces `path` by rename, so that a reader sees the old file or the new one, never a half.

    JSON, because it has one reading: Envoy's YAML parser and Python's disagree about unquoted words.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())


def publish(path: Path, response: Json) -> int | None:
    """Writes a discovery response if its resources differ from those in `path`; its new `version_info`, or None if nothing changed.

    Versions count up from what the file holds, so they survive restarts of this process.
    """
    present = read_json(path) or {}
    if present.get("resources") == response["resources"]:
        return None
    version = version_of(present) + 1
    write_json(path, {**response, "version_info": str(version)})
    return version


def version_of(response: Json | None) -> int:
    """The version of a discovery response; 0 for none."""
    text = str((response or {}).get("version_info", "0"))
    return int(text) if text.isdigit() else 0
