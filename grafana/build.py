"""Writes `grafana/dashboards/*.json`; `--check` writes nothing and names those that are not as the code says.

The JSON is committed, so that Grafana needs none of this, and a change of a dashboard can be read as one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

DASHBOARDS = Path(__file__).resolve().parent / "dashboards"
NEEDS = (3, 11)
"""The oldest Python that the library knows."""


def texts() -> dict[str, str]:
    """Each file's name and what belongs into it."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder  # noqa: PLC0415 - the preview needs the files only, on any Python

    from grafana import cost, edge, pods, service  # noqa: PLC0415 - likewise
    from grafana.boards import assemble  # noqa: PLC0415 - likewise

    boards = [module.make() for module in (service, pods, edge, cost)]
    return {f"{board.name}.json": json.dumps(assemble(board), cls=JSONEncoder, sort_keys=True, indent=2) + "\n" for board in boards}


def stale() -> list[str]:
    """The files that are missing, or not as the code says, or not from it."""
    wanted = texts()
    found = {path.name: path.read_text() for path in DASHBOARDS.glob("*.json")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def main(arguments: list[str]) -> int:
    """The exit code."""
    if sys.version_info < NEEDS:
        print("grafana: not built and not checked; grafana-foundation-sdk needs Python 3.11", file=sys.stderr)
        return 0 if arguments == ["--check"] else 1
    names = stale()
    if arguments == ["--check"]:
        for name in names:
            print(f"grafana/dashboards/{name} is not what the code makes; run `make dashboards`", file=sys.stderr)
        return 1 if names else 0
    DASHBOARDS.mkdir(exist_ok=True)
    for name, text in texts().items():
        (DASHBOARDS / name).write_text(text)
    print(f"wrote {', '.join(names)}" if names else "nothing has changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
