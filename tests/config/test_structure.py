"""The rules of the house that a machine can check: sizes, who may import whom, files that are made from code."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_FILE_LINES = 250
MAX_FUNCTION_LINES = 40
REASON = "# long:"
"""A longer file or function says why on the line above it (a file: in its first three lines)."""

SERVICES = {"engine", "edge", "ops", "openai", "store", "telemetry", "settings", "clients"}
ALLOWED = {
    "engine": {"openai", "store", "telemetry", "settings"},
    "edge": {"openai", "store", "telemetry", "settings", "clients"},
    "ops": {"openai", "store", "telemetry", "settings", "clients"},
    "openai": set[str](),
    "store": {"settings"},
    "telemetry": set[str](),
    "settings": set[str](),
    "clients": set[str](),
}


def tracked(suffix: str) -> list[Path]:
    """Files of the checkout that git knows or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", f"*{suffix}"],  # noqa: S607 - git is found as everywhere
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\n")
    return [ROOT / name for name in listed if name and (ROOT / name).exists()]


PYTHON = tracked(".py")


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_and_functions_fit_a_reader(path: Path) -> None:
    """A file has at most 250 lines and a function 40, unless the reason stands above."""
    lines = path.read_text().splitlines()
    if not any(REASON in line for line in lines[:3]):
        assert len(lines) <= MAX_FILE_LINES, f"{path} has {len(lines)} lines"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            above = lines[min([node.lineno, *[item.lineno for item in node.decorator_list]]) - 2]
            assert length <= MAX_FUNCTION_LINES or REASON in above, f"{path}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("path", [path for path in PYTHON if "services" in path.parts], ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    """A service imports the shared packages and itself, never another service."""
    parts = path.relative_to(ROOT).parts
    owner = parts[1] if parts[1] in SERVICES else ""
    for name in _imported(path):
        target = [*name.split("."), ""][1]
        if name.startswith("services.") and target in SERVICES and owner:
            assert target == owner or target in ALLOWED[owner], f"{path} imports {name}"


def _imported(path: Path) -> set[str]:
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_only_the_settings_package_reads_the_environment() -> None:
    """A setting is read in one place, so that a misspelt one cannot hide."""
    allowed = {"services/settings/reader.py"}
    for path in PYTHON:
        name = str(path.relative_to(ROOT))
        if name.startswith("services/") and name not in allowed:
            text = path.read_text()
            assert "os.getenv" not in text, name
            assert "environ.get(" not in text, name


@pytest.mark.parametrize(
    ("made", "script"), [(".env.example", "scripts/write_env_example.py"), ("docs/metrics.md", "scripts/write_metrics_md.py")]
)
def test_a_file_made_from_code_is_as_the_code_says(made: str, script: str) -> None:
    """Settings and metrics are listed as they are declared."""
    spec = importlib.util.spec_from_file_location("script", ROOT / script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / made).read_text() == module.text(), f"run {script}"


def test_locks_name_no_index() -> None:
    """The lock files have hashes and no address of any package index."""
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        text = path.read_text()
        assert "--hash=sha256:" in text
        assert "://" not in text, path
