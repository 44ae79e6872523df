"""Edits a clients file as text, so that every comment and every line that is not concerned stays as it is.

Each function takes a file's text and its name, which stands in front of what is wrong, and gives the new text. What comes out is read again
and must hold exactly the clients that were meant; else nothing is changed. Errors are `ClientsFileError`, a line each.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

import msgspec
import yaml

from services.clients.declared import Client, ClientsFile, Key, Moment, unix_seconds
from services.clients.places import (
    Edit,
    after_line,
    apply,
    block_item,
    end_of,
    line_end,
    line_start,
    newline_of,
    refuse_what_hides_places,
    without_flow_items,
    without_lines,
)
from services.clients.reading import ClientsFileError, compose, items, pair_of, parse, value_of
from services.clients.writing import in_block, in_flow, keys_of

if TYPE_CHECKING:
    from collections.abc import Iterable

_SHOWN_HASH = 8
_BLANK_LINE = re.compile(r"\n[ \t]*\r?\n")


def add(text: str, file_name: str, client: Client) -> str:
    """One more client, at the end."""
    found, root = _open(text, file_name)
    line = _line_of(found, root, client.name)
    if line:
        raise ClientsFileError(
            f"{file_name}:{line}: there is a client {client.name} already; `convoy keys rotate {client.name}` gives it a new key"
        )
    place = pair_of(root, "clients")
    assert place is not None
    assert isinstance(place[1], yaml.SequenceNode)
    return _checked(found, _added(text, file_name, place[0], place[1], client), file_name, [*found.clients, client])


def rotate(text: str, file_name: str, name: str, new_hash: str, old_expire: Moment | None) -> str:
    """A new key for a client. Its others end at `old_expire`, if they do not end before; without it they are gone at once."""
    found, root = _open(text, file_name)
    number = _number_of(found, file_name, name)
    client = found.clients[number]
    node = items(root, "clients")[number]
    sequence = value_of(node, "keys")
    assert isinstance(sequence, yaml.SequenceNode)
    new = Key(new_hash)
    if not client.keys:
        keys, edits = [new], [Edit(sequence.start_mark.index + 1, sequence.start_mark.index + 1, new_hash)]
    elif old_expire is None:
        first = sequence.value[0]
        keys = [new]
        edits = [Edit(first.start_mark.index, end_of(first), new_hash), *_without_keys(text, file_name, sequence, _all_but_first(sequence))]
    else:
        keys = [new, *(_ending(key, old_expire) for key in keys_of(client))]
        edits = [_key_before(text, sequence, new_hash)]
        for key, key_node in zip(keys_of(client), sequence.value, strict=True):
            if _ending(key, old_expire) != key:
                edits.append(_expiring(text, key_node, key.sha256, old_expire))
    after = list(found.clients)
    after[number] = msgspec.structs.replace(client, keys=tuple(keys))
    return _checked(found, apply(text, edits), file_name, after)


def remove_client(text: str, file_name: str, name: str) -> str:
    """Without a client; its comments within its lines go with it."""
    found, root = _open(text, file_name)
    number = _number_of(found, file_name, name)
    place = pair_of(root, "clients")
    assert place is not None
    key, sequence = place
    assert isinstance(sequence, yaml.SequenceNode)
    if sequence.flow_style:
        edits = without_flow_items(text, sequence, [number])
    else:
        edits = [without_lines(text, *block_item(text, file_name, sequence, sequence.value[number]))]
        if len(sequence.value) == 1:
            colon = text.index(":", key.end_mark.index) + 1
            edits.append(Edit(colon, colon, " []"))
    after = [client for client in found.clients if client.name != name]
    return _checked(found, apply(text, edits), file_name, after)


def remove_key(text: str, file_name: str, name: str, hash_prefix: str) -> str:
    """Without one key of a client: the one whose hash begins with `hash_prefix`."""
    found, root = _open(text, file_name)
    number = _number_of(found, file_name, name)
    client = found.clients[number]
    keys = keys_of(client)
    chosen = [index for index, key in enumerate(keys) if key.sha256.startswith(hash_prefix.lower())]
    if len(chosen) != 1:
        there = ", ".join(key.sha256[:_SHOWN_HASH] for key in keys) or "none"
        what = f"{len(chosen)} keys of {name} have hashes that begin" if chosen else f"no key of {name} has a hash that begins"
        raise ClientsFileError(f"{file_name}: {what} with {hash_prefix[:64]}; there are: {there}")
    if len(keys) == 1:
        raise ClientsFileError(
            f"{file_name}: it is the only key of {name}; `convoy keys rotate {name} --keep 0` puts another in its place, "
            f"`convoy keys remove {name}` removes the client"
        )
    sequence = value_of(items(root, "clients")[number], "keys")
    assert isinstance(sequence, yaml.SequenceNode)
    after = list(found.clients)
    after[number] = msgspec.structs.replace(client, keys=tuple(key for index, key in enumerate(keys) if index != chosen[0]))
    return _checked(found, apply(text, _without_keys(text, file_name, sequence, chosen)), file_name, after)


def _open(text: str, file_name: str) -> tuple[ClientsFile, yaml.MappingNode]:
    found = parse(text, file_name)
    refuse_what_hides_places(text, file_name)
    return found, compose(text, file_name)


def _checked(before: ClientsFile, after: str, file_name: str, clients: Iterable[Client]) -> str:
    """`after`, if it says what was meant; a file may be written in ways that nobody thought of."""
    meant = msgspec.structs.replace(before, clients=tuple(clients))
    try:
        is_meant = _normal(parse(after, file_name)) == _normal(meant)
    except ClientsFileError:
        is_meant = False
    if not is_meant:
        raise ClientsFileError(
            f"{file_name}: it is written in a way that `convoy keys` cannot edit; change it by hand, see clients.example.yaml"
        )
    return after


def _normal(found: ClientsFile) -> ClientsFile:
    return msgspec.structs.replace(
        found, clients=tuple(msgspec.structs.replace(client, keys=tuple(keys_of(client))) for client in found.clients)
    )


def _ending(key: Key, moment: Moment) -> Key:
    return key if key.expires is not None and unix_seconds(key.expires) <= unix_seconds(moment) else Key(key.sha256, moment)


def _line_of(found: ClientsFile, root: yaml.MappingNode, name: str) -> int:
    """The line of a client; 0 if there is none."""
    lines = (node.start_mark.line + 1 for client, node in zip(found.clients, items(root, "clients"), strict=True) if client.name == name)
    return next(lines, 0)


def _number_of(found: ClientsFile, file_name: str, name: str) -> int:
    names = [client.name for client in found.clients]
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        raise ClientsFileError(
            f"{file_name}: there is no client {name}{f', did you mean {near[0]}?' if near else ''}; see `convoy keys list`"
        )
    return names.index(name)


def _all_but_first(sequence: yaml.SequenceNode) -> list[int]:
    return list(range(1, len(sequence.value)))


def _without_keys(text: str, file_name: str, sequence: yaml.SequenceNode, numbers: list[int]) -> list[Edit]:
    if sequence.flow_style:
        return without_flow_items(text, sequence, numbers)
    places = [block_item(text, file_name, sequence, sequence.value[number]) for number in numbers]
    return [Edit(start, after_line(text, end)) for start, end in places]


def _key_before(text: str, sequence: yaml.SequenceNode, new_hash: str) -> Edit:
    """A new key before the first: the newest comes first."""
    if sequence.flow_style:
        start = sequence.value[0].start_mark.index
        return Edit(start, start, f"{new_hash}, ")
    start = line_start(text, sequence.start_mark.index)
    return Edit(start, start, f"{' ' * sequence.start_mark.column}- {new_hash}{newline_of(text)}")


def _expiring(text: str, node: yaml.Node, sha256: str, moment: Moment) -> Edit:
    """Gives a key an end, however it is written."""
    if isinstance(node, yaml.ScalarNode):
        return Edit(node.start_mark.index, node.end_mark.index, f"{{sha256: {sha256}, expires: {moment}}}")
    expires = value_of(node, "expires")
    if expires is not None:
        start, end = expires.start_mark.index, expires.end_mark.index
        return Edit(start, end, moment if end > start else f" {moment}")
    if isinstance(node, yaml.MappingNode) and node.flow_style:
        end = end_of(value_of(node, "sha256") or node)
        return Edit(end, end, f", expires: {moment}")
    end = line_end(text, end_of(node))
    return Edit(end, end, f"{newline_of(text)}{' ' * node.start_mark.column}expires: {moment}")


def _added(text: str, file_name: str, key: yaml.Node, sequence: yaml.SequenceNode, client: Client) -> str:
    """The text with a client at the end of the list, written as the list is."""
    newline = newline_of(text)
    if sequence.flow_style and (sequence.value or not _is_empty_block(text, sequence)):
        at = end_of(sequence.value[-1]) if sequence.value else sequence.start_mark.index + 1
        return apply(text, [Edit(at, at, (", " if sequence.value else "") + in_flow(client))])
    if not sequence.value:
        at = line_end(text, sequence.end_mark.index)
        return apply(
            text,
            [
                Edit(text.index(":", key.end_mark.index) + 1, sequence.end_mark.index),
                Edit(at, at, newline + newline.join(in_block(client, 0))),
            ],
        )
    places = [block_item(text, file_name, sequence, item) for item in sequence.value[-2:]]
    at = places[-1][1]
    # Clients stand apart by a blank line, unless those that are there do not.
    is_apart = len(places) == 1 or _BLANK_LINE.search(text, places[0][1], places[1][0])
    lines = [*([""] if is_apart else []), *in_block(client, sequence.start_mark.column)]
    return apply(text, [Edit(at, at, newline + newline.join(lines))])


def _is_empty_block(text: str, sequence: yaml.SequenceNode) -> bool:
    """Whether an empty `[]` ends its line, at the left margin of the file, so that a block can take its place."""
    inside = text[sequence.start_mark.index : sequence.end_mark.index]
    behind = text[sequence.end_mark.index : line_end(text, sequence.end_mark.index)].strip(" \t")
    start = line_start(text, sequence.start_mark.index)
    return inside in {"[]", "[ ]"} and (not behind or behind.startswith("#")) and text.startswith("clients", start)
