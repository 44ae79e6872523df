"""Envoy itself as the judge of what is about to be written."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from services.envoy_binary import envoy_binary

if TYPE_CHECKING:
    from services.edge.files import Json

_TIMEOUT_SECONDS = 60
"""Validation takes 0.3 s; on a machine that swaps, longer."""


class InvalidConfigError(Exception):
    """Envoy refuses a configuration; the message is Envoy's reason."""


def validate(config: Json) -> None:
    """Asks Envoy whether it would run a whole bootstrap; raises `InvalidConfigError`."""
    with tempfile.TemporaryDirectory(prefix="convoy-validate-") as folder:
        path = Path(folder, "envoy.json")
        path.write_text(json.dumps(config), encoding="utf-8")
        validate_file(path, Path(folder))


def validate_file(path: Path, working_dir: Path) -> None:
    """Asks Envoy whether it would run the bootstrap in `path`, relative names being meant from `working_dir`."""
    command = [str(envoy_binary()), "--mode", "validate", "-c", str(path), "--log-level", "error", "--base-id", "0"]
    done = subprocess.run(command, cwd=working_dir, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    if done.returncode != 0:
        raise InvalidConfigError(_reason(done.stdout + done.stderr))


def _reason(output: str) -> str:
    """Envoy's own words, without its log prefix."""
    lines = [line for line in output.splitlines() if line.strip()]
    return "\n".join(line.split("] ", 4)[-1] for line in lines) or "Envoy refuses it without a reason"
