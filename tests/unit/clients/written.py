"""Clients files as people write them: block and flow, indented or not, with comments everywhere."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from hypothesis import strategies as st


def hash_number(number: int) -> str:
    """One of many different hashes."""
    return hashlib.sha256(str(number).encode()).hexdigest()


@dataclass(frozen=True)
class Written:
    """A file: its text, and for each client its name, how many keys it has, and the lines that are its own."""

    text: str
    names: list[str]
    num_keys: list[int]
    own_lines: list[list[str]]


ends = st.sampled_from(["", "2026-12-31", "2099-01-31T18:00", "2099-01-31 18:00:05+02:00"])


@st.composite
def _key(draw: st.DrawFn, number: int) -> str:
    """A key in flow, however it is written."""
    end = draw(ends)
    plain = draw(st.sampled_from([f"{hash_number(number)}", f"'{hash_number(number)}'"]))
    if end:
        return draw(st.sampled_from([f"{{sha256: {plain}, expires: {end}}}", f"{{ expires: {end}, sha256: {plain} }}"]))
    return draw(st.sampled_from([plain, f"{{sha256: {plain}}}", f"{{sha256: {plain}, expires: }}", f"{{sha256: {plain}, expires: null}}"]))


@st.composite
def _key_lines(draw: st.DrawFn, number: int, indent: str) -> list[str]:
    """A key as an item of a block list."""
    comment = draw(st.sampled_from(["", f"   # key {number}"]))
    end = draw(ends)
    if draw(st.booleans()):
        return [f"{indent}- {draw(_key(number))}{comment}"]
    return [f"{indent}-   sha256: {hash_number(number)}{comment}", *([f"{indent}    expires: {end}  # its end"] if end else [])]


@st.composite
def _client_lines(draw: st.DrawFn, number: int, num_keys: int, indent: str) -> list[str]:
    """A client as an item of a block list; its first line has the dash."""
    deeper = indent + draw(st.sampled_from(["  ", "    "]))
    dash = "-".ljust(len(deeper) - len(indent))
    numbers = [number * 10 + key for key in range(num_keys)]
    if draw(st.booleans()) or not numbers:
        gap = draw(st.sampled_from(["", f"  # first of {number}\n{deeper}  ".replace("\n", "\n")]))
        keys = [f"keys: [{gap}{', '.join(draw(_key(key)) for key in numbers)}{draw(st.sampled_from(['', ',' if numbers else '']))}]"]
    else:
        at = deeper + draw(st.sampled_from(["", "  "]))
        keys = [f"keys:  # of {number}", *[line for key in numbers for line in draw(_key_lines(key, at))]]
    fields = [
        [f"name: client-{number}"],
        keys,
        ["role: ops # why"],
        [f"# a note on {number}"],
        ["models: [demo, 'org/x:1']"],
        ["expires: 2099-12-31"],
    ]
    chosen = [*fields[:2], *[field for field in fields[2:] if draw(st.booleans())]]
    first, *rest = draw(st.permutations(chosen)) if draw(st.booleans()) else chosen
    if first[0].startswith("#"):
        first, rest = rest[0], [first, *rest[1:]]
    lines = [indent + dash + first[0], *first[1:]]
    for field in rest:
        lines += [deeper + field[0], *field[1:]]
    return "\n".join(lines).split("\n")


@st.composite
def files(draw: st.DrawFn, min_clients: int = 0, min_keys: int = 0) -> Written:
    """A whole file."""
    num_keys = draw(st.lists(st.integers(min_keys, 3), min_size=min_clients, max_size=4))
    names = [f"client-{number}" for number in range(len(num_keys))]
    limits = ["limits:", "  standard: {requests_per_minute: 300, burst: 30} # ours", "  batch: {requests_per_minute: 6, burst: 1}", ""]
    head = ["# who may call", *draw(st.sampled_from([[], limits]))]
    own: list[list[str]] = []
    if not num_keys or draw(st.integers(0, 4)) == 0:
        written = [
            f"{{name: client-{number}, keys: [{', '.join(draw(_key(number * 10 + key)) for key in range(count))}]}}"
            for number, count in enumerate(num_keys)
        ]
        own = [[item] for item in written]
        joint = draw(st.sampled_from([", ", ",\n  ", ", # next\n  "]))
        body = f"clients: [{joint.join(written)}]{draw(st.sampled_from(['', '  # all of them']))}".split("\n")
    else:
        indent = draw(st.sampled_from(["", "  "]))
        between = draw(st.sampled_from([[], [""], [indent + "# next"], ["", "# next", ""]]))
        body = ["clients:" + draw(st.sampled_from(["", "   # all of them"]))]
        for number, count in enumerate(num_keys):
            own.append(draw(_client_lines(number, count, indent)))
            body += [*(between if number else []), *own[-1]]
    parts = [body, draw(st.sampled_from([[], ["# the end"], ["", "# the end", ""]]))]
    lines = [*head, *[line for part in parts for line in part]]
    text = "\n".join(lines) + draw(st.sampled_from(["", "\n"]))
    return Written(draw(st.sampled_from([text, text.replace("\n", "\r\n")])), names, num_keys, own)
