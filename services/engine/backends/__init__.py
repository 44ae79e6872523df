"""Generation backends behind a registry that imports only the chosen one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.engine.token_generator import TokenGenerator

if TYPE_CHECKING:
    from services.engine.backends.remote.generator import Forwarded, RemoteGenerator
    from services.engine.token_generator import Prepared
    from services.settings import EngineSettings

    AnyPrepared = Prepared | Forwarded
    AnyGenerator = TokenGenerator | RemoteGenerator

# The imports stand in the functions on purpose: torch costs seconds and hundreds of megabytes, and only one engine is ever used.
# ruff: noqa: PLC0415


def create_generator(settings: EngineSettings, pod: str) -> AnyGenerator:
    """The generator that `ENGINE` names, not yet started, for the pod of that name."""
    if settings.engine == "fake":
        from services.engine.backends.fake import FakeBackend, FakeTokenizer

        return TokenGenerator(FakeBackend(settings, pod), FakeTokenizer)
    if settings.engine == "remote":
        from services.engine.backends.remote.generator import RemoteGenerator

        return RemoteGenerator(settings)
    if settings.engine == "vllm":
        from services.engine.backends.vllm import create as create_vllm

        return create_vllm(settings)
    from services.engine.backends.transformers import create

    return create(settings)


def check_model(settings: EngineSettings) -> None:
    """Raises `BackendError` if the model is surely not there; quick, so that nobody waits for imports to learn of a misspelt path."""
    if settings.engine in {"transformers", "vllm"}:
        from services.engine.backends.huggingface.locating import local_folder

        local_folder(settings.model_name)


def preimport(settings: EngineSettings) -> None:
    """Imports what the pods will need, for a parent that forks them; starts no thread and touches no device."""
    if settings.engine == "transformers":
        from services.engine.backends.transformers import preimport as preimport_transformers

        preimport_transformers()
    elif settings.engine == "vllm":
        from services.engine.backends.vllm import preimport as preimport_vllm

        preimport_vllm()


def can_fork(settings: EngineSettings) -> bool:
    """Whether a pod of this engine may be a fork: CUDA does not survive one."""
    if settings.engine in {"fake", "remote"}:
        return True
    from services.engine.backends.transformers import runs_on_cpu

    return runs_on_cpu(settings)
