"""Reads a clients file. Whatever is wrong with it is one line that names file, line and reason; a file is taken whole or not at all."""

from __future__ import annotations

import gc
import re
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from services.clients.declared import Client, ClientsFile, Key, unix_seconds

if TYPE_CHECKING:
    from pathlib import Path

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml is ten times as fast as Python's parser: 5000 clients in 0.4 s."""

_MAX_DEPTH = 8
_ALLOWED = {
    "name": "a name of letters, digits and @ . _ -, at most 64",
    "class": "the name of a class under `limits:`",
    "keys": "SHA-256 hashes of keys, 64 hexadecimal digits each (`convoy keys add` writes them)",
    "sha256": "a SHA-256 hash, 64 hexadecimal digits",
    "role": "user or ops",
    "max_priority": "high, normal or low",
    "expires": "a date such as 2027-01-31 or 2027-01-31T18:00Z",
    "models": "model ids",
    "tokens_per_minute": "a whole number from 1",
    "max_concurrent_requests": "a whole number from 1",
    "requests_per_minute": "a whole number from 1 to 6000000",
    "burst": "a whole number from 1 to 6000000",
}
_STEP = re.compile(r"\[(\d+)\]|\[\.\.\.\]|\.?([^.\[\]]+)")


class ClientsFileError(ValueError):
    """A clients file that cannot be used; the message names file, line and reason."""


def read(path: Path) -> ClientsFile:
    """The clients of a file; raises `ClientsFileError`, and `OSError` if it cannot be read."""
    return parse(path.read_text(encoding="utf-8", errors="replace"), path.name)


def parse(text: str, name: str) -> ClientsFile:
    """The clients of a file's text; `name` stands in front of what is wrong. Raises `ClientsFileError`."""
    # A tree of 100 000 nodes, none of them in a cycle: looking for cycles would take three times as long as the rest (0.9 s against 0.25).
    had_gc = gc.isenabled()
    gc.disable()
    try:
        root = compose(text, name)
        try:
            found = msgspec.convert(_plain(root, name, 0), ClientsFile)
        except msgspec.ValidationError as error:
            raise _located(root, name, str(error)) from error
        _check(found, root, name)
        return found
    finally:
        if had_gc:
            gc.enable()


def compose(text: str, name: str) -> yaml.MappingNode:
    """The file's tree of nodes, which know their lines; raises `ClientsFileError`."""
    try:
        root = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ClientsFileError(f"{name}:{mark.line + 1 if mark else 1}: this is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ClientsFileError(f"{name}:1: this is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(root, yaml.MappingNode):
        raise ClientsFileError(f"{name}:1: the top must hold `clients:`, a list, and may hold `limits:`, see clients.example.yaml")
    return root


def items(root: yaml.MappingNode, key: str) -> list[yaml.Node]:
    """The nodes of a list at the top of the file; none if it is not there."""
    value = next((value for name, value in root.value if name.value == key), None)
    return list(value.value) if isinstance(value, yaml.SequenceNode) else []


def _plain(node: yaml.Node, name: str, depth: int) -> Any:
    """A node as lists, dictionaries and scalars. YAML lets the second of two equal names win; here that is a mistake."""
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if depth == _MAX_DEPTH:
        raise ClientsFileError(f"{name}:{node.start_mark.line + 1}: this is nested too deeply")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(value, name, depth + 1) for value in node.value]
    found: dict[str, Any] = {}
    for key, value in node.value:
        word = key.value if isinstance(key, yaml.ScalarNode) else "a list"
        if word in found:
            raise ClientsFileError(f"{name}:{key.start_mark.line + 1}: `{word}` stands twice in one place")
        found[word] = _plain(value, name, depth + 1)
    return found


def _scalar(node: yaml.ScalarNode) -> object:
    """A number where one is written, None for nothing; all else, dates too, is text."""
    if node.tag == "tag:yaml.org,2002:null":
        return None
    if node.tag == "tag:yaml.org,2002:int" and node.value.isdecimal():
        return int(node.value)
    return node.value


def _located(root: yaml.Node, name: str, message: str) -> ClientsFileError:
    """Msgspec's words with the line that its path leads to, and what is allowed there."""
    reason, _, path = message.partition(" - at `$")
    node: Any = root
    field = ""
    for number, word in _STEP.findall(path.rstrip("`")):
        if isinstance(node, yaml.SequenceNode) and number:
            node = node.value[int(number)]
        elif isinstance(node, yaml.MappingNode):
            node, field = next((value for key, value in node.value if key.value == word), node), word
    place = path.rstrip("`").lstrip(".")
    if field in _ALLOWED and isinstance(node, yaml.ScalarNode):
        # What stands where a hash belongs may be a key.
        got = "" if field in {"keys", "sha256"} else f", got {node.value[:80]!r}"
        reason = f"must be {_ALLOWED[field]}{got}"
    return ClientsFileError(f"{name}:{node.start_mark.line + 1}: {place + ': ' if place else ''}{reason}")


def _check(found: ClientsFile, root: yaml.MappingNode, name: str) -> None:
    """What one client alone cannot know: names and keys are each there once, classes exist."""
    nodes = items(root, "clients")
    classes = found.classes()
    names: dict[str, int] = {}
    hashes: dict[str, int] = {}
    for number, client in enumerate(found.clients):
        line = nodes[number].start_mark.line + 1
        if client.name in names:
            raise ClientsFileError(f"{name}:{line}: there is another client {client.name} in line {names[client.name]}")
        names[client.name] = line
        if client.limit_class not in classes:
            raise ClientsFileError(
                f"{name}:{line}: client {client.name} has the class {client.limit_class}, which `limits:` does not declare; "
                f"there are: {', '.join(sorted(classes))}"
            )
        _check_dates(client, f"{name}:{line}")
        for key in client.all_keys():
            if key.sha256 in hashes:
                raise ClientsFileError(f"{name}:{line}: client {client.name} has a key that stands in line {hashes[key.sha256]}, too")
            hashes[key.sha256] = line


def _check_dates(client: Client, place: str) -> None:
    for moment in [client.expires, *(key.expires for key in client.keys if isinstance(key, Key))]:
        try:
            unix_seconds(moment or "2000-01-01")
        except ValueError as error:
            raise ClientsFileError(f"{place}: client {client.name} expires {moment}, which is no date: {error}") from error
