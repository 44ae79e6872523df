"""Which Python an engine's pods run on: vLLM pins its own torch and much else, so it has an environment beside that of all others."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from services.settings import SettingsError

_ROOT = Path(__file__).resolve().parents[2]
_VLLM, _OTHERS = _ROOT / ".venv-vllm", _ROOT / ".venv"


def python_of(engine: str) -> str:
    """The interpreter that has what `ENGINE` imports. Raises `SettingsError` if none has it."""
    if engine == "vllm":
        if importlib.util.find_spec("vllm"):
            return sys.executable
        python = _VLLM / "bin" / "python"
        if not python.exists() or Path(sys.prefix) == _VLLM:
            cure = "`make up ENGINE=vllm` installs it, into .venv-vllm (in containers: `docker compose up --build`)"
            raise SettingsError(f"ENGINE=vllm: vLLM is not installed; {cure}")
        return str(python)
    return str(_OTHERS / "bin" / "python") if Path(sys.prefix) == _VLLM else sys.executable


def enter(engine: str, arguments: list[str]) -> None:
    """Runs this program with the interpreter that `ENGINE` needs, in this process, where that is another one.

    Descriptors and the process id stay, so that whoever started it notices nothing.
    """
    python = python_of(engine)
    if python != sys.executable:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(python, [python, "-m", "services.engine", *arguments])  # noqa: S606 - our own program
