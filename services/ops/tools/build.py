"""Builds a tool from its Go module and puts it into the cache, whole or not at all.

Each is built in a module of its own that requires the tool. `go install module@version` would be shorter, but refuses a module whose go.mod
replaces others, and ignores the versions that a go.mod excludes.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.ops.state import OpsError
from services.ops.tools.lookup import home
from services.ops.tools.table import COLLECTOR, MANIFEST, Tool, components

if TYPE_CHECKING:
    from collections.abc import Mapping

OLDEST_GO = (1, 25)
TEMPORARY = ".build-"
"""How the folders begin in which builds run; what one that was killed leaves there, the next run removes."""

_STRIPPED = "-s -w"  # no symbol table, no debugging data: a third smaller
_BUILD = ("build", "-trimpath", "-buildvcs=false")  # neither our paths nor somebody's repository around the cache get into the program


class BuildError(Exception):
    """A step of a build failed; `output` is what Go said."""

    def __init__(self, step: str, output: str) -> None:
        """Keeps both."""
        super().__init__(step)
        self.output = output


@dataclass(frozen=True)
class Go:
    """The Go command and the environment in which it runs."""

    path: str
    env: Mapping[str, str]

    def run(self, folder: Path, *arguments: str) -> str:
        """Runs `go ARGUMENTS` in `folder` and returns its standard output; raises `BuildError`."""
        # CGO_ENABLED: as upstream builds them; no C compiler is needed. GOWORK: the cache may lie below somebody's workspace.
        # GOTMPDIR: what a killed build leaves is then in our folder.
        env = {**self.env, "CGO_ENABLED": "0", "GOWORK": "off", "GOTMPDIR": str(folder)}
        command = [self.path, *arguments]
        try:
            ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            raise BuildError(f"{self.path} cannot be started ({error.strerror})", "") from error
        if ended.returncode:
            raise BuildError(f"`go {' '.join(arguments[:2])}` ended with {ended.returncode}", ended.stderr + ended.stdout)
        return ended.stdout


def find_go(env: Mapping[str, str]) -> Go:
    """The Go command on PATH; raises `OpsError` if there is none or it is too old."""
    wanted = f"Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer"
    path = shutil.which("go", path=env.get("PATH", ""))
    if path is None:
        raise OpsError(f"{wanted} is needed and there is no `go` on PATH")
    go = Go(path, env)
    try:
        with tempfile.TemporaryDirectory() as folder:
            told = go.run(Path(folder), "env", "GOVERSION").strip()
    except BuildError as error:
        raise OpsError(f"{wanted} is needed and {path} does not tell its version ({error})") from error
    numbers = re.search(r"go(\d+)\.(\d+)", told)  # also in `devel go1.27-…`
    if not numbers or (int(numbers[1]), int(numbers[2])) < OLDEST_GO:
        raise OpsError(f"{wanted} is needed and {path} is {told or 'of no known version'}")
    return go


def build(tool: Tool, cache: Path, go: Go) -> Path:
    """Builds and installs it; raises `BuildError`. The caller holds the cache's lock."""
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=cache))
    try:
        target = folder / "out" / tool.name
        target.parent.mkdir()
        (_build_collector if tool == COLLECTOR else _build_module)(tool, target, folder, go)
        if not target.is_file():
            raise BuildError("Go built nothing", "")
        final = home(tool, cache)
        shutil.rmtree(final.parent, ignore_errors=True)
        target.parent.rename(final.parent)
        return final
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _build_module(tool: Tool, target: Path, folder: Path, go: Go) -> None:
    module, version = tool.source.split("@")
    source = json.loads(go.run(folder, "mod", "download", "-json", tool.source))
    upstream = json.loads(go.run(folder, "mod", "edit", "-json", source["GoMod"]))
    (folder / "go.mod").write_text("\n".join(["module tool", f"go {upstream['Go']}", *_directives(upstream), ""]))
    # Upstream's checksums: what was released is what is built.
    (folder / "go.sum").write_bytes((Path(source["Dir"]) / "go.sum").read_bytes())
    package = f"{module}/{tool.package}"
    go.run(folder, "get", "-tool", f"{package}@{version}")
    flags = f"{_STRIPPED} -X {tool.version_variable}={tool.version}"
    go.run(folder, *_BUILD, "-ldflags", flags, "-o", str(target), package)


def _directives(upstream: dict[str, Any]) -> list[str]:
    """Upstream's `exclude` and `replace` lines, which count only in the main module of a build."""
    lines = [f"exclude {module['Path']} {module['Version']}" for module in upstream.get("Exclude") or []]
    for replace in upstream.get("Replace") or []:
        old, new = (f"{replace[side]['Path']} {replace[side].get('Version', '')}".strip() for side in ("Old", "New"))
        lines.append(f"replace {old} => {new}")
    return lines


def _build_collector(tool: Tool, target: Path, folder: Path, go: Go) -> None:
    """The official builder writes the program's source from our manifest.

    Its own way on from there begins with `go mod tidy`, which wants the tests of every module and what those need; some of that cannot be
    downloaded. So the go.mod is ours: the manifest's modules, and the core at the same version.
    """
    core = f"go.opentelemetry.io/collector/otelcol v{tool.version}"
    go.run(folder, "run", tool.source, "--config", str(MANIFEST), "--skip-get-modules", "--skip-compilation")
    requires = [f"require {module}" for module in [core, *components()]]
    (folder / "go.mod").write_text("\n".join(["module otelcol", f"go {OLDEST_GO[0]}.{OLDEST_GO[1]}", *requires, ""]))
    go.run(folder, *_BUILD, "-mod=mod", "-ldflags", _STRIPPED, "-o", str(target), ".")
