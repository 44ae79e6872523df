"""Switches the fake engine's faults on and off while its pods run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from services.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def set_faults(path: Path, faults: Mapping[str, Mapping[str, Any]]) -> None:
    """Replaces the file that FAKE_FAULTS_FILE names: faults by pod's name, or `*`; an empty mapping ends them all."""
    write_atomically(path, json.dumps(faults).encode())
