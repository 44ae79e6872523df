"""The `vllm` engine: vLLM's AsyncLLM in the pod's process. Only functions import it, when called."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.engine.token_generator import TokenGenerator
    from services.settings import EngineSettings

# ruff: noqa: PLC0415 - see above


def create(settings: EngineSettings) -> TokenGenerator:
    """A generator over the model that MODEL_NAME names, not yet started."""
    from services.engine.backends.vllm.backend import VllmBackend
    from services.engine.token_generator import TokenGenerator

    backend = VllmBackend(settings)
    return TokenGenerator(backend, backend.tokenizer)


def preimport() -> None:
    """Imports what starting and generating will need; starts no thread and touches no device, so that a fork is safe."""
    from services.engine.backends.vllm import preloaded

    preloaded.use()
