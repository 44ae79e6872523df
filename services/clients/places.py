"""Where the parts of a clients file stand in its text. Editing needs it to the character; nothing here knows what a client is."""

from __future__ import annotations

import re
from typing import NamedTuple

import yaml

from services.clients.reading import LOADER, ClientsFileError

# What YAML takes for the end of a line.
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_BLANK_AT_END = re.compile(r"(?:\A|(?<=[\r\n]))[ \t]*(?:\r\n|\r|\n)\Z")


class Edit(NamedTuple):
    """What comes to stand where `start` to `end` stood."""

    start: int
    end: int
    text: str = ""


def apply(text: str, edits: list[Edit]) -> str:
    """The text after edits, none of which reaches into another; where one inserts and one replaces, the inserted comes first."""
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def refuse_what_hides_places(text: str, name: str) -> None:
    """Raises `ClientsFileError` for YAML in which a part can stand elsewhere than it seems, or where its end cannot be told."""
    hidden = {
        yaml.AnchorToken: "an anchor",
        yaml.AliasToken: "an alias",
        yaml.TagToken: "a tag",
        yaml.DirectiveToken: "a directive",
        yaml.DocumentEndToken: "the mark `...`",
    }
    for token in yaml.scan(text, LOADER):
        what = hidden.get(type(token), "")
        if isinstance(token, yaml.KeyToken) and text[token.start_mark.index : token.start_mark.index + 1] == "?":
            what = "a key after `?`"
        elif isinstance(token, yaml.ScalarToken) and token.style in {"|", ">"}:
            what = f"text after `{token.style}`"
        if what:
            raise ClientsFileError(
                f"{name}:{token.start_mark.line + 1}: here is {what}, which `convoy keys` does not edit; "
                "write it out plainly, or change the file by hand (a key's hash: printf %s KEY | sha256sum)"
            )


def newline_of(text: str) -> str:
    """How the file ends its lines."""
    return "\r\n" if "\r\n" in text else "\n"


def end_of(node: yaml.Node) -> int:
    """Where a node's last character is; the end mark of a block stands at whatever comes next, comments skipped."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return end_of(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def line_start(text: str, index: int) -> int:
    """Where the line of `index` begins."""
    return max(text.rfind(mark, 0, index) for mark in "\r\n\x85\u2028\u2029") + 1


def line_end(text: str, index: int) -> int:
    """Where the line of `index` ends, its line break not included."""
    found = _BREAK.search(text, index)
    return found.start() if found else len(text)


def after_line(text: str, index: int) -> int:
    """Where the next line begins."""
    found = _BREAK.search(text, index)
    return found.end() if found else len(text)


def block_item(text: str, name: str, sequence: yaml.SequenceNode, item: yaml.Node) -> tuple[int, int]:
    """From the start of the line of an item's dash to the end of its last line, with the comments below that are indented deeper."""
    column = sequence.start_mark.column
    start = line_start(text, item.start_mark.index)
    while text[start + column : start + column + 1] != "-" or text[start : start + column].strip():
        if start <= line_start(text, sequence.start_mark.index):
            raise ClientsFileError(f"{name}:{item.start_mark.line + 1}: its `-` must stand alone before it; change the file by hand")
        start = line_start(text, start - 1)
    end = line_end(text, end_of(item))
    while (below := after_line(text, end)) > end:
        line = text[below : line_end(text, below)]
        indent = len(line) - len(line.lstrip(" "))
        if indent <= column or not line.lstrip(" ").startswith("#"):
            break
        end = below + len(line)
    return start, end


def without_lines(text: str, start: int, end: int) -> Edit:
    """Takes whole lines away; of the blank lines above and below, which would come together, it takes one, too."""
    after = after_line(text, end)
    blank = _BLANK_AT_END.search(text, 0, start)
    if blank and (after == len(text) or not text[after : line_end(text, after)].strip()):
        start = blank.start()
    return Edit(start, after)


def without_flow_items(text: str, sequence: yaml.SequenceNode, gone: list[int]) -> list[Edit]:
    """Takes items out of `[a, b]`, each with the comma before it, or, at the front, after it; comments stay."""
    nodes = sequence.value
    edits: list[Edit] = []
    first_kept = next((number for number in range(len(nodes)) if number not in gone), None)
    for number in gone:
        node = nodes[number]
        edits.append(Edit(node.start_mark.index, node.end_mark.index))
        if first_kept is not None and number > first_kept:
            start, end = _comma(text, nodes[number - 1].end_mark.index)
            is_plain = not text[end : node.start_mark.index].strip(" ")
            edits[-1:] = [Edit(start, node.end_mark.index)] if is_plain else [Edit(start, start + 1), edits[-1]]
        else:
            following = _comma(text, node.end_mark.index)
            edits += [Edit(*following)] if following else []
    return edits


def _comma(text: str, index: int) -> tuple[int, int]:
    """Where the next comma and the blanks behind it stand; two equal numbers if the list ends first."""
    while text[index] != ",":
        if text[index] == "]":
            return index, index
        index = line_end(text, index) if text[index] == "#" else index + 1
    end = index + 1
    while text[end] == " ":
        end += 1
    # A comment needs the blank before it.
    return index, index + 1 if text[end] == "#" else end
