"""The `transformers` engine: any causal LM that transformers knows, batched step by step. Only functions import torch, when called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.engine.token_generator import TokenGenerator
    from services.settings import EngineSettings

# ruff: noqa: PLC0415 - see above

_ACCELERATORS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def create(settings: EngineSettings) -> TokenGenerator:
    """A generator over the model that MODEL_NAME names, not yet started."""
    from services.engine.backends.transformers.backend import TransformersBackend
    from services.engine.token_generator import TokenGenerator

    backend = TransformersBackend(settings)
    return TokenGenerator(backend, backend.tokenizer)


def preimport() -> None:
    """Imports what loading and generating will need; starts no thread and touches no tensor or device, so that a fork is safe."""
    from services.engine.backends.transformers import preloaded

    preloaded.use()


def runs_on_cpu(settings: EngineSettings) -> bool:
    """Whether the model will run on the processor; found without touching a device, since asking CUDA would spoil a fork."""
    if settings.device == "auto":
        return sys.platform == "linux" and not any(Path(path).exists() for path in _ACCELERATORS)
    return settings.device == "cpu"
