"""`make bench`: measures, prints the tables and writes docs/benchmarks.md. `python -m bench pod edge` measures only these.

`python -m bench --update pod edge` also puts them in the place of their earlier tables there.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import platform
import re
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markdown import Markdown

from bench import (
    ablation,
    batching,
    chain,
    client,
    continuation,
    crowds,
    drills,
    edge,
    engine,
    engines,
    limits,
    memory,
    overload,
    peer,
    pod,
    returning,
    tracing,
)
from bench.measuring import ROOT, Section

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

DOCUMENT = ROOT / "docs" / "benchmarks.md"
ELSEWHERE = {"batching": ROOT / "docs" / "batching.md"}
"""Parts whose tables stand in a document of their own, beside what they mean."""
PARTS: dict[str, Callable[[], Awaitable[list[Section]]]] = {
    "pod": pod.measure,
    "edge": edge.measure,
    "chain": chain.measure,
    "client": client.measure,
    "ablation": ablation.measure,
    "limits": limits.measure,
    "engine": engine.measure,
    "engines": engines.measure,
    "batching": batching.measure,
    "continuation": continuation.measure,
    "overload": overload.measure,
    "peer": peer.measure,
    "returning": returning.measure,
    "crowds": crowds.measure,
    "drills": drills.measure,
    "memory": memory.measure,
    "tracing": tracing.measure,
}
_HEAD = """\
# Benchmarks

Written by `make bench` on {day}: {cores} cores, {processor}, Python {python}. Ratios of one run are what to compare; absolute times belong
to the machine, which was shared. `python -m bench NAME …` measures a part.
"""


def processor() -> str:
    """The processor's name, as far as the machine tells it."""
    with open("/proc/cpuinfo") as lines:  # noqa: PTH123 - a pseudo file
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def updated(text: str, sections: list[Section]) -> str:
    """The document with these tables in the place of those of the same title; new ones come last."""
    for section in sections:
        fresh = section.markdown().strip() + "\n\n"
        place = re.search(rf"^## {re.escape(section.title)}\n.*?(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
        text = text[: place.start()] + fresh + text[place.end() :] if place else f"{text.rstrip()}\n\n{fresh}"
    return text.rstrip() + "\n"


async def main(wanted: list[str]) -> int:
    """Measures the wanted parts, all if none is named; the exit code."""
    is_update = "--update" in wanted
    wanted = [name for name in wanted if name != "--update"]
    unknown = set(wanted) - set(PARTS)
    if unknown:
        print(f"bench: no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 1
    sections: dict[Path, list[Section]] = {}
    for name in wanted or PARTS:
        print(f"bench: {name} …", file=sys.stderr, flush=True)
        sections.setdefault(ELSEWHERE.get(name, DOCUMENT), []).extend(await PARTS[name]())
    day = dt.datetime.now(tz=dt.timezone.utc).date().isoformat()
    head = _HEAD.format(day=day, cores=os.cpu_count(), processor=processor(), python=platform.python_version())
    Console().print(Markdown("\n".join([head, *(one.markdown() for each in sections.values() for one in each)])))
    if is_update or not wanted:
        for path, found in sections.items():
            path.write_text(updated(path.read_text() if is_update or path != DOCUMENT else head, found))
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
