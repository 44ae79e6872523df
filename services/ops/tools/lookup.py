"""Where a tool lies: in the cache, or on PATH if what is there is new enough. Nothing here builds or changes anything."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from services.ops.state import ROOT
from services.ops.tools.table import Tool, key
from services.settings import OpsSettings, load

if TYPE_CHECKING:
    from collections.abc import Mapping

_ANSWER_SECONDS = 20


def cache_dir(env: Mapping[str, str]) -> Path:
    """Where built tools lie: `TOOLS_DIR`, else the user's cache folder, so that every clone on the machine finds them."""
    chosen = load(OpsSettings, env).tools_dir
    if chosen:
        return ROOT / Path(chosen).expanduser()
    caches = Path(env.get("XDG_CACHE_HOME", ""))
    # The standard behind that variable has a relative path ignored.
    return (caches if caches.is_absolute() else Path("~/.cache").expanduser()) / "convoy" / "bin"


def home(tool: Tool, cache: Path) -> Path:
    """The tool's place in the cache, whether it is there or not."""
    return cache / key(tool) / tool.name


def find(tool: Tool, env: Mapping[str, str]) -> Path | None:
    """The program to run, or None: the cache's copy first, which is exactly the version that Convoy is tested with."""
    built = home(tool, cache_dir(env))
    if built.is_file():
        return built
    on_path = (shutil.which(name, path=env.get("PATH", "")) for name in tool.path_names)
    return next((Path(path) for path in on_path if path and version_of(path, env) >= tool.oldest), None)


def version_of(program: str | Path, env: Mapping[str, str]) -> tuple[int, int]:
    """The first two numbers of what the program answers to `--version`; (0, -1), older than any, if it does not tell."""
    try:
        told = subprocess.run(
            [program, "--version"], env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_ANSWER_SECONDS, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0, -1
    found = re.search(rb"version v?(\d+)\.(\d+)", told)
    return (int(found[1]), int(found[2])) if found else (0, -1)
