"""`make tools`: builds what is not there yet, one after the other, and says what it does."""

# ruff: noqa: T201 - it tells people what it does
from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from services.ops.plan import read_plan
from services.ops.state import OpsError
from services.ops.tools.build import TEMPORARY, BuildError, Go, build, find_go
from services.ops.tools.lookup import cache_dir, find
from services.ops.tools.table import TOOLS, Tool
from services.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from types import FrameType

_SHOWN_LINES = 30
_INTERRUPTED = 130  # what a shell calls the exit of a command that Ctrl-C ended


def get_all(env: Mapping[str, str]) -> None:
    """Finds or builds every tool; raises `OpsError`, with a line for each that could not be got."""
    cache = cache_dir(env)
    with _lock(cache):
        places = {tool: find(tool, env) for tool in TOOLS}
        for tool, place in places.items():
            if place:
                _say(f"{tool.name} is there: {place}")
        missing = [tool for tool, place in places.items() if place is None]
        problems = _build_all(missing, cache, env) if missing else []
    if problems:
        raise OpsError("\n".join(problems))
    _say(f"all {len(TOOLS)} are there")


def _build_all(missing: Sequence[Tool], cache: Path, env: Mapping[str, str]) -> list[str]:
    try:
        go = find_go(env)
    except OpsError as error:
        names = ", ".join(tool.name for tool in missing)
        others = "".join(f" ({tool.name} also: {tool.cure})" for tool in missing if tool.cure)
        return [f"{error}; install it (go.dev/doc/install), then run `make tools` again. Missing: {names}{others}"]
    _say(f"{len(missing)} to build, once per machine: about {sum(tool.minutes for tool in missing)} minutes on 2 cores; they go to {cache}")
    return [problem for tool in missing if (problem := _build_one(tool, cache, go))]


def _build_one(tool: Tool, cache: Path, go: Go) -> str | None:
    """Builds one; gives back the line that says why it could not."""
    _say(f"building {tool.name} {tool.version}, which {tool.purpose}: about {tool.minutes} min …")
    began = time.monotonic()
    try:
        place = build(tool, cache, go)
    except BuildError as error:
        print("\n".join(error.output.rstrip().splitlines()[-_SHOWN_LINES:]), file=sys.stderr)
        other = f", or: {tool.cure}" if tool.cure else ""
        return (
            f"{tool.name} could not be built: {error}, see the lines above; if the network was the reason (GOPROXY names another way), "
            f"run `make tools` again: it goes on with what is missing{other}"
        )
    except OSError as error:
        return f"{tool.name} could not be put into {cache} ({error.strerror}); make room there, or choose another folder: TOOLS_DIR"
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    _say(f"built {tool.name} in {minutes} min {seconds} s: {place} ({place.stat().st_size / 1e6:.0f} MB)")
    return None


@contextmanager
def _lock(cache: Path) -> Iterator[None]:
    """Lets one run at a time work in the cache, and takes away what a killed one left; the kernel frees the lock of a dead process."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        handle = os.open(cache / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    except OSError as error:
        raise OpsError(f"{cache} cannot be written ({error.strerror}); choose another folder: TOOLS_DIR") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another `make tools` is building; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        for left in cache.glob(f"{TEMPORARY}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(handle)


def _say(text: str) -> None:
    print(f"tools: {text}", flush=True)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Runs the command; returns its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)  # so that a build that is stopped takes its folder away
    try:
        get_all(read_plan().env)
    except KeyboardInterrupt:
        print("tools: stopped; what was built stays, the rest is built by the next `make tools`", file=sys.stderr)
        return _INTERRUPTED
    except (OpsError, SettingsError) as error:
        for line in str(error).splitlines():
            print(f"tools: {line}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
