from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from services.ops.state import ROOT
from services.ops.tools import COLLECTOR, TOOLS, Tool, cache_dir, find, home
from services.ops.tools.build import TEMPORARY

# Answers as Go does, writes down what it was asked, and "compiles" a line of text. It knows no command but the shell's own: PATH holds
# nothing else, so that no program of this machine is found. ON_BUILD is run at each `go build`, with $target to be written.
FAKE_GO = """#!/bin/sh
echo "$*" >> "$FAKES/asked"
for last in "$@"; do [ "$before" = -o ] && target=$last; before=$last; done
case "$1 $2" in
  "env GOVERSION") echo "${GO_IS:-go1.26.1}" ;;
  "mod download") echo "{\\"Dir\\": \\"$FAKES\\", \\"GoMod\\": \\"$FAKES/upstream.mod\\"}" ;;
  "mod edit") echo '{"Go": "1.24.6", "Exclude": [{"Path": "bad.example/a", "Version": "v1.0.0"}], "Replace": [
    {"Old": {"Path": "old.example/b"}, "New": {"Path": "new.example/b", "Version": "v1.33.0"}}]}' ;;
  "get -tool") while read -r line; do echo "$line" >> "$FAKES/go.mod"; done < go.mod ;;
  "build -trimpath") echo half > "$target"; eval "${ON_BUILD:-}"; echo whole >> "$target" ;;
esac
"""


@dataclass
class Machine:
    """A cache and a PATH of which a test knows everything."""

    bin: Path
    cache: Path
    fakes: Path

    @property
    def env(self) -> dict[str, str]:
        """The environment of a run."""
        return {"PATH": str(self.bin), "TOOLS_DIR": str(self.cache), "FAKES": str(self.fakes), "HOME": str(self.fakes)}

    def program(self, name: str, script: str) -> Path:
        """Puts a shell script on PATH."""
        path = self.bin / name
        path.write_text(script)
        path.chmod(0o755)
        return path

    def in_cache(self, tool: Tool) -> Path:
        """Puts a file where the built tool would lie."""
        path = home(tool, self.cache)
        path.parent.mkdir(parents=True)
        path.write_text("whole")
        return path

    def start(self, **more: str) -> subprocess.Popen[str]:
        """Starts what `make tools` starts."""
        command = [sys.executable, "-m", "services.ops.tools"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, env=self.env | more, stdout=pipe, stderr=pipe, text=True)

    def run(self, **more: str) -> tuple[int, str, list[str]]:
        """Runs it to its end: exit code, standard output, lines of standard error."""
        process = self.start(**more)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err.splitlines()

    def asked(self) -> str:
        """What the fake Go was asked, one call a line."""
        path = self.fakes / "asked"
        return path.read_text() if path.exists() else ""

    def left(self) -> list[str]:
        """What lies in the cache."""
        return sorted(path.name for path in self.cache.iterdir() if path.name != ".lock")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with nothing on PATH and nothing built."""
    made = Machine(tmp_path / "bin", tmp_path / "cache", tmp_path / "fakes")
    made.bin.mkdir()
    made.fakes.mkdir()
    (made.fakes / "go.sum").write_text("sums\n")
    return made


def tool(name: str) -> Tool:
    """The row of the table."""
    return next(one for one in TOOLS if one.name == name)


def test_the_cache_goes_before_path(machine: Machine) -> None:
    """What was built is the version that was tested; what the machine has is taken only where nothing was built."""
    installed = machine.program("prometheus", "#!/bin/sh\necho 'prometheus, version 3.9.0 (branch: HEAD)'\n")
    assert find(tool("prometheus"), machine.env) == installed
    built = machine.in_cache(tool("prometheus"))
    assert find(tool("prometheus"), machine.env) == built


@pytest.mark.parametrize(
    ("name", "command", "says", "is_taken"),
    [
        ("prometheus", "prometheus", "prometheus, version 2.42.0+ds (branch: debian/sid)", False),  # Debian's has no OTLP receiver
        ("prometheus", "prometheus", "prometheus, version 3.0.1 (branch: HEAD)", True),
        ("prometheus", "prometheus", "no idea", False),
        ("promtool", "promtool", "promtool, version 2.53.0", False),
        ("alertmanager", "prometheus-alertmanager", "prometheus-alertmanager, version 0.25.0 (branch: debian/sid)", True),
        ("otelcol", "otelcol", "otelcol version 0.155.0", False),  # upstream's small distribution lacks half of what we use
        ("otelcol", "otelcol-contrib", "otelcol-contrib version 0.160.1", True),
        ("jaeger", "jaeger", "jaeger version v2.13.0", True),
    ],
)
def test_a_program_on_path_is_taken_if_it_can_serve(machine: Machine, name: str, command: str, says: str, is_taken: bool) -> None:
    """The program is asked for its version; an old one would stop at a flag that it does not know."""
    path = machine.program(command, f"#!/bin/sh\necho '{says}'\n")
    assert find(tool(name), machine.env) == (path if is_taken else None)


def test_the_cache_lies_outside_the_checkout(tmp_path: Path) -> None:
    """All clones of a user share one cache, in the folder that the desktop standard names; TOOLS_DIR names another."""
    assert cache_dir({"TOOLS_DIR": str(tmp_path), "XDG_CACHE_HOME": "/x"}) == tmp_path
    assert cache_dir({"XDG_CACHE_HOME": "/x"}) == Path("/x/convoy/bin")
    assert cache_dir({"XDG_CACHE_HOME": "relative"}) == cache_dir({}) == Path.home() / ".cache/convoy/bin"


def test_what_is_there_is_not_built_again(machine: Machine) -> None:
    """A second run says where each tool lies and does not even look for Go."""
    places = [machine.in_cache(one) for one in TOOLS]
    code, out, err = machine.run()
    assert (code, err) == (0, [])
    assert all(str(place) in out for place in places)
    assert "building" not in out


@pytest.mark.parametrize(("go", "reason"), [("", "no `go` on PATH"), ("go1.19.8", "go1.19.8"), ("devel", "devel")])
def test_without_a_usable_go_the_end_is_one_line(machine: Machine, go: str, reason: str) -> None:
    """It names what is wrong with Go, what is missing, and how else to get it."""
    if go:
        machine.program("go", FAKE_GO)
    machine.in_cache(tool("jaeger"))
    code, _, err = machine.run(GO_IS=go)
    assert (code, len(err)) == (1, 1)
    assert reason in err[0]
    assert "Missing: otelcol, alertmanager, prometheus, promtool (alertmanager also: apt install prometheus-alertmanager)" in err[0]
    assert machine.left() == [home(tool("jaeger"), machine.cache).parent.name]


def test_missing_tools_are_built_as_upstream_pins_them(machine: Machine) -> None:
    """Each lands under its name; the module that builds it repeats upstream's `exclude` and `replace`, which Go ignores otherwise."""
    machine.program("go", FAKE_GO)
    code, out, err = machine.run()
    assert (code, err) == (0, [])
    assert [home(one, machine.cache).read_text() for one in TOOLS] == ["half\nwhole\n"] * len(TOOLS)
    assert all(f"built {one.name} in 0 min" in out for one in TOOLS)
    written = (machine.fakes / "go.mod").read_text().splitlines()
    assert {"go 1.24.6", "exclude bad.example/a v1.0.0", "replace old.example/b => new.example/b v1.33.0"} <= set(written)
    assert "get -tool github.com/prometheus/prometheus/cmd/promtool@v0.307.3" in machine.asked()
    assert "version.Version=3.7.3" in machine.asked()


def test_a_failed_build_is_told_and_leaves_nothing(machine: Machine) -> None:
    """Half a program never gets its name; Go's last words are shown, the other tools are built, the exit code is 1."""
    machine.program("go", FAKE_GO)
    fails = 'case "$target" in *jaeger) i=0; while [ $i -lt 50 ]; do i=$((i+1)); echo "line $i."; done; exit 2;; esac'
    code, _, err = machine.run(ON_BUILD=fails)
    assert code == 1
    assert err[:-1] == [f"line {number}." for number in range(21, 51)]
    assert "jaeger could not be built" in err[-1]
    assert machine.left() == sorted(home(one, machine.cache).parent.name for one in TOOLS if one.name != "jaeger")


def test_a_build_that_is_stopped_leaves_nothing(machine: Machine) -> None:
    """SIGTERM, or Ctrl-C, in the middle of a build: no half program, no folder, and it says so."""
    machine.program("go", FAKE_GO)
    code, _, err = machine.run(ON_BUILD="kill -TERM $PPID; sleep 30")
    assert (code, machine.left()) == (130, [])
    assert len(err) == 1
    assert "stopped" in err[0]


def test_what_a_killed_run_left_is_taken_away(machine: Machine) -> None:
    """A run that had no chance to clean up costs disk space only until the next one."""
    left = machine.cache / f"{TEMPORARY}of-old"
    left.mkdir(parents=True)
    (left / "go.mod").write_text("module tool\n")
    machine.run()
    assert not left.exists()


def test_two_runs_at_once_build_once(machine: Machine) -> None:
    """The second waits for the first and then finds everything there."""
    machine.program("go", FAKE_GO)
    gate = machine.fakes / "gate"
    os.mkfifo(gate)
    first = machine.start(ON_BUILD='[ -e "$FAKES/opened" ] || read -r _ < "$FAKES/gate"; : > "$FAKES/opened"')
    assert first.stdout
    line = next(line for line in first.stdout if "building" in line)
    assert COLLECTOR.name in line
    second = machine.start()
    assert second.stdout
    assert "waiting" in second.stdout.readline()
    gate.write_text("go on\n")  # the first run's build stood still until here
    told = second.communicate(timeout=60)[0]
    assert first.wait(60) == second.returncode == 0
    first.communicate()
    assert "building" not in told
    assert machine.asked().count("build -trimpath") == len(TOOLS)


def test_the_collectors_manifest_is_of_one_version() -> None:
    """The collector's parts and its core are released together; mixed releases compile, and fail when they run."""
    manifest = yaml.safe_load((ROOT / "otel-collector/builder.yaml").read_text())
    assert (manifest["dist"]["name"], manifest["dist"]["version"]) == (COLLECTOR.name, COLLECTOR.version)
    parts = [part["gomod"].split() for kind, parts in manifest.items() if kind != "dist" for part in parts]
    assert {version for module, version in parts if "/confmap/" not in module} == {f"v{COLLECTOR.version}"}
    assert COLLECTOR.source.endswith(f"@v{COLLECTOR.version}")
