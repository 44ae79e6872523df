"""Imports everything that a pod needs to load a model and generate, so that a process forked after it starts in no time."""

from __future__ import annotations

import os

# numpy's and scipy's OpenBLAS start their threads when they are imported, and a parent that forks must have none.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import transformers.models.llama.modeling_llama

import services.engine.backends.transformers.backend  # noqa: F401


def use() -> None:
    """Nothing: the imports are the point. Transformers resolves its names lazily, so these are touched too."""
    for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM", "PreTrainedTokenizerFast"):
        getattr(transformers, name)
