"""Loads a causal LM: device, dtype, context, weights; every obstacle becomes one readable line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.utils import logging as transformers_logging

from services.engine.backends.transformers.locating import locate
from services.engine.generation import BackendError, ModelInfo, SamplingDefaults

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.settings import EngineSettings

_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


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
    return Loaded(model, tokenizer, eos_ids(model, tokenizer, vocabulary_size), info)


def choose_device(wanted: str) -> torch.device:
    """`auto` is the first CUDA device, else Apple's, else the processor. Raises `BackendError`."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"DEVICE={wanted}: torch sees no CUDA device; set DEVICE=cpu, or install a driver and a CUDA build of torch")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"DEVICE={wanted}: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BackendError("DEVICE=mps: this machine has no such device; set DEVICE=cpu")
    return device


def choose_dtype(wanted: str, device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> Any:
    """`auto` is the checkpoint's on an accelerator; on a processor bfloat16 only where it is fast: elsewhere it is 30 times slower."""
    if wanted != "auto":
        return getattr(torch, wanted)
    if device.type != "cpu":
        return "auto"
    words = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return torch.bfloat16 if _CPU_FLAGS.intersection(words) else torch.float32


def choose_context(wanted: int, config: Any) -> int:
    """Tokens of prompt and answer together. Raises `BackendError` if more is wanted than the model can do."""
    own: int | None = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if wanted and (own is None or wanted <= own):
        return wanted
    if own is None:
        raise BackendError("MAX_MODEL_LEN=0: this model does not tell its context; set MAX_MODEL_LEN to the tokens it was trained for")
    if wanted:
        raise BackendError(f"MAX_MODEL_LEN={wanted}: the model's context is {own} tokens; set at most {own}, or 0 for all of it")
    return own


def sampling_defaults(generation_config: Any) -> SamplingDefaults:
    """What generation_config.json says about sampling; what it leaves out stays off, with temperature 1."""
    said = {name: getattr(generation_config, name, None) for name in SamplingDefaults.__struct_fields__}
    return SamplingDefaults(**{name: value for name, value in said.items() if value is not None})


def eos_ids(model: Any, tokenizer: Any, vocabulary_size: int) -> frozenset[int]:
    """The tokens that end an answer, by the model's generation settings and its tokenizer."""
    found = [model.generation_config.eos_token_id, model.config.get_text_config(decoder=True).eos_token_id, tokenizer.eos_token_id]
    ids = [one for each in found if each is not None for one in (each if isinstance(each, list) else [each])]
    return frozenset(one for one in ids if 0 <= one < vocabulary_size)


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


__all__ = ["Loaded", "choose_context", "choose_device", "choose_dtype", "eos_ids", "load", "sampling_defaults"]
