"""Reads a clients file. Whatever is wrong with it is one line that names file, line and reason; a file is taken whole or not at all."""

from __future__ import annotations

import difflib
import gc
import re
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from services.clients.declared import ClientsFile, Limits, Name, unix_seconds
from services.clients.secrets import hash_of

if TYPE_CHECKING:
    from pathlib import Path

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml is ten times as fast as Python's parser: 5000 clients with two keys each in 0.4 s."""

# Far deeper than any clients file. PyYAML's composer calls itself at each level, in C, and crashes at some ten thousand.
_MAX_DEPTH = 8
ALLOWED = {
    "name": "a name of letters, digits and @ . _ -, at most 64, the first a letter or digit",
    "class": "the name of a class under `limits:`",
    "keys": "SHA-256 hashes of keys, 64 lower-case hexadecimal digits each (`convoy keys add` writes them)",
    "sha256": "a SHA-256 hash, 64 lower-case hexadecimal digits",
    "role": "user or ops",
    "max_priority": "high, normal or low",
    "expires": "a date such as 2027-01-31 or 2027-01-31T18:00Z",
    "models": "model ids",
    "tokens_per_minute": "a whole number from 1 to 1000000000",
    "max_concurrent_requests": "a whole number from 1 to 1000000",
    "requests_per_minute": "a whole number from 1 to 6000000",
    "burst": "a whole number from 1 to 6000000",
    "clients": "a list of clients, `[]` for none",
    "limits": "classes of limits, see clients.example.yaml",
}
"""What may stand in each field, in words."""

_STEP = re.compile(r"\[(\d+)\]|\[\.\.\.\]|\.?([^.\[\]]+)")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_LOOKS_LIKE_A_KEY = re.compile(r"sk-[\w-]{4,}")
# What `printf %s "$UNSET" | sha256sum` and the same with `echo` give.
_HASHES_OF_NOTHING = {hash_of(""), hash_of("\n")}


class ClientsFileError(ValueError):
    """A clients file that cannot be used; the message names file, line and reason, and shows nothing that looks like a key."""

    def __init__(self, message: str) -> None:
        """Takes what looks like a key out of `message`, which goes into logs."""
        super().__init__(masked(message))


def masked(text: str) -> str:
    """Without what looks like a key."""
    return _LOOKS_LIKE_A_KEY.sub("sk-…", text)


def read(path: Path) -> ClientsFile:
    """The clients of a file; raises `ClientsFileError`, and `OSError` if it cannot be read."""
    return parse(path.read_text(encoding="utf-8", errors="replace"), path.name)


def parse(text: str, name: str) -> ClientsFile:
    """The clients of a file's text; `name` stands in front of what is wrong. Raises `ClientsFileError`."""
    # A tree of 100 000 nodes without a cycle: looking for cycles takes three times as long as all the rest (0.9 s against 0.3).
    had_gc = gc.isenabled()
    gc.disable()
    try:
        return _parse(text, name)
    finally:
        if had_gc:
            gc.enable()


def _parse(text: str, name: str) -> ClientsFile:
    root = compose(text, name)
    try:
        # Not strict: every scalar is text, so that a client may be called 123, and a number is read where one belongs.
        found = msgspec.convert(_plain(root, name), ClientsFile, strict=False)
    except msgspec.ValidationError as error:
        raise _located(root, name, str(error)) from error
    _check(found, root, name)
    return found


def compose(text: str, name: str) -> yaml.MappingNode:
    """The file's tree of nodes, which know their lines; raises `ClientsFileError`."""
    try:
        _check_depth(text, name)
        root = yaml.compose(text, LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ClientsFileError(f"{name}:{mark.line + 1 if mark else 1}: this is not YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.encode()[: error.position].count(b"\n") + 1
        raise ClientsFileError(f"{name}:{line}: this is not YAML: {error.reason}") from error
    if not isinstance(root, yaml.MappingNode):
        raise ClientsFileError(f"{name}:1: the top must hold `clients:`, a list, and may hold `limits:`, see clients.example.yaml")
    return root


def pair_of(node: yaml.Node, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    """The nodes of a key and of its value; None if `node` is no mapping that has it."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next(((name, value) for name, value in pairs if name.value == key), None)


def value_of(node: yaml.Node, key: str) -> yaml.Node | None:
    """The node of a key's value."""
    pair = pair_of(node, key)
    return pair[1] if pair else None


def items(node: yaml.Node, key: str) -> list[yaml.Node]:
    """The nodes of the list that stands under `key`; none if there is none."""
    value = value_of(node, key)
    return list(value.value) if isinstance(value, yaml.SequenceNode) else []


def _check_depth(text: str, name: str) -> None:
    depth = 0
    for event in yaml.parse(text, LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise ClientsFileError(f"{name}:{line}: this is nested too deeply")


def _plain(node: yaml.Node, name: str, depth: int = 0) -> Any:
    """A node as lists, dictionaries and text. YAML lets the second of two equal names win; here that is a mistake."""
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == "tag:yaml.org,2002:null" else node.value
    if depth == _MAX_DEPTH:  # an alias can lead into itself
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


def _located(root: yaml.Node, name: str, message: str) -> ClientsFileError:
    """Msgspec's words with the line that its path leads to, and what is allowed there."""
    reason, _, path = message.partition(" - at `")
    if path.startswith(("key` in `$.limits", "$.limits[...]")):
        return _located_class(root, name)
    node: Any = root
    field = ""
    place = path.rstrip("`").removeprefix("$").lstrip(".")
    for number, word in _STEP.findall(place):
        if number:
            node, field = node.value[int(number)], "" if field == "clients" else field
        else:
            node, field = value_of(node, word), word
    unknown = _UNKNOWN.match(reason)
    if unknown:
        key = pair_of(node, unknown.group(1))
        node = key[0] if key else node
        near = difflib.get_close_matches(unknown.group(1), ALLOWED, 1)
        # What stands where a hash belongs may be a key.
        reason = "a key has `sha256` and may have `expires`" if field == "keys" else f"there is no field `{unknown.group(1)}`"
        reason += f", did you mean `{near[0]}`?" if near else ""
    elif field in ALLOWED and isinstance(node, yaml.ScalarNode):
        reason = f"must be {ALLOWED[field]}" + ("" if field in {"keys", "sha256"} else f", got {node.value[:80]!r}")
    return ClientsFileError(f"{name}:{node.start_mark.line + 1}: {place + ': ' if place else ''}{reason}")


def _located_class(root: yaml.Node, name: str) -> ClientsFileError:
    """The first class that is wrong: msgspec's path does not say which."""
    limits = value_of(root, "limits")
    for key, value in limits.value if limits else []:
        try:
            msgspec.convert(key.value, Name)
        except msgspec.ValidationError:
            got = f", got {key.value[:80]!r}" if isinstance(key, yaml.ScalarNode) else ""
            return ClientsFileError(f"{name}:{key.start_mark.line + 1}: a class must have {ALLOWED['name']}{got}")
        try:
            msgspec.convert(_plain(value, name), Limits, strict=False)
        except msgspec.ValidationError as error:
            where, _, what = str(_located(value, name, str(error))).partition(": ")
            return ClientsFileError(f"{where}: limits.{key.value}{'.' if '`$.' in str(error) else ': '}{what}")
    raise AssertionError("msgspec refused a class that is right")


def _check(found: ClientsFile, root: yaml.MappingNode, name: str) -> None:
    """What one client alone cannot know: names and keys are each there once, classes exist."""
    classes = found.classes()
    names: dict[str, int] = {}
    hashes: dict[str, int] = {}
    for client, node in zip(found.clients, items(root, "clients"), strict=True):
        line = node.start_mark.line + 1
        if client.name in names:
            raise ClientsFileError(f"{name}:{line}: there is another client {client.name} in line {names[client.name]}")
        names[client.name] = line
        if client.limit_class not in classes:
            line = (value_of(node, "class") or node).start_mark.line + 1
            raise ClientsFileError(
                f"{name}:{line}: client {client.name} has the class {client.limit_class}, which `limits:` does not declare; "
                f"there are: {', '.join(sorted(classes))}"
            )
        key_nodes = items(node, "keys")
        _check_dates(client.name, [node, *key_nodes], name)
        for key, key_node in zip(client.all_keys(), key_nodes, strict=True):
            line = key_node.start_mark.line + 1
            if key.sha256 in hashes:
                raise ClientsFileError(f"{name}:{line}: client {client.name} has a key that stands in line {hashes[key.sha256]}, too")
            if key.sha256 in _HASHES_OF_NOTHING:
                raise ClientsFileError(f"{name}:{line}: client {client.name} has the hash of an empty key")
            hashes[key.sha256] = line


def _check_dates(client: str, nodes: list[yaml.Node], name: str) -> None:
    for found in (value_of(node, "expires") for node in nodes):
        if found is None or found.tag == "tag:yaml.org,2002:null":
            continue
        try:
            unix_seconds(found.value)
        except ValueError as error:
            line = found.start_mark.line + 1
            raise ClientsFileError(f"{name}:{line}: client {client} expires {found.value}, which is no date: {error}") from error
