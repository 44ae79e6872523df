"""Imports everything that a pod needs to start vLLM and generate, so that a process forked after it starts in no time."""

from __future__ import annotations

import os
import warnings

# numpy's and scipy's OpenBLAS start their threads when they are imported, and a parent that forks must have none.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of vLLM about torch, on which nobody here has a say
    import services.engine.backends.vllm.backend  # noqa: F401


def use() -> None:
    """Nothing: the imports are the point."""
