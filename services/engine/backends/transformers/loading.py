"""Loads a causal LM: device, dtype, context, weights; every obstacle becomes one readable line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.utils import logging as transformers_logging

from services.engine.backends.huggingface.choosing import choose_context, choose_device, choose_dtype, eos_ids, sampling_defaults
from services.engine.backends.huggingface.locating import locate
from services.engine.generation import BackendError, ModelInfo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from services.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory with what belongs to it."""

    model: Any
    tokenizer: Any
    eos_token_ids: frozenset[int]
    info: ModelInfo


def load(settings: EngineSettings, progress: Callable[[str], None]) -> Loaded:
    """Loads what the settings name, on the calling thread, whose compute threads it sets. Raises `BackendError`."""
    torch.set_num_threads(settings.num_threads or len(os.sched_getaffinity(0)))
    transformers_logging.disable_progress_bar()
    folder = locate(settings.model_name, progress)
    progress(f"loading {settings.model_name}")
    try:
        return _load(settings, folder)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise BackendError(f"MODEL_NAME={settings.model_name}: cannot be loaded: {type(error).__name__}: {reason}") from error


def _load(settings: EngineSettings, folder: Path) -> Loaded:
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    _refuse_unsupported(settings.model_name, config)
    device = choose_device(settings.device)
    context_tokens = choose_context(settings.max_model_len, config)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise BackendError(f"MODEL_NAME={settings.model_name}: it has no fast tokenizer (tokenizer.json), which serving needs")
    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=choose_dtype(settings.dtype, device),
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # they are reported, and refused below in one line
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    _refuse_incomplete(settings.model_name, report)
    model = model.to(device).eval()
    vocabulary_size = model.get_output_embeddings().weight.shape[0]
    info = ModelInfo(
        context_tokens, vocabulary_size, str(device), str(model.dtype).removeprefix("torch."), sampling_defaults(model.generation_config)
    )
    return Loaded(model, tokenizer, eos_ids(model.generation_config, config, tokenizer, vocabulary_size), info)


def _refuse_unsupported(model_name: str, config: Any) -> None:
    """Our cache keeps whole rows: layers that forget, share or compress their past would be wrong in it."""
    if config.is_encoder_decoder:
        raise BackendError(f"MODEL_NAME={model_name}: an encoder-decoder model; ENGINE=transformers serves causal language models")
    layer_types, _ = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
    others = sorted(set(layer_types) - {"full_attention"})
    if others:
        raise BackendError(
            f"MODEL_NAME={model_name}: its layers are of type {', '.join(others)}; "
            "ENGINE=transformers serves models whose layers are all full_attention"
        )


def _refuse_incomplete(model_name: str, report: Any) -> None:
    """Weights that the files lack would be random: the model would answer nonsense."""
    missing = sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
    if missing:
        raise BackendError(
            f"MODEL_NAME={model_name}: its weights do not fit its config.json ({len(missing)} missing or of another shape, "
            f"first {missing[0]}); give a complete causal language model"
        )
