"""What a model's configs and the machine decide: device, number format, context, sampling, and the tokens that end an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from services.engine.generation import BackendError, SamplingDefaults

_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


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


def eos_ids(generation_config: Any, config: Any, tokenizer: Any, vocabulary_size: int) -> frozenset[int]:
    """The tokens that end an answer, by the model's generation settings and its tokenizer."""
    found = [generation_config.eos_token_id, config.get_text_config(decoder=True).eos_token_id, tokenizer.eos_token_id]
    ids = [one for each in found if each is not None for one in (each if isinstance(each, list) else [each])]
    return frozenset(one for one in ids if 0 <= one < vocabulary_size)
