"""What vLLM is told: Convoy's settings one to one, the user's VLLM_ARGS, and what the machine decides."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch._inductor import config as inductor
from vllm.config import CompilationMode
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser

from services.engine.backends.huggingface.choosing import choose_dtype
from services.engine.backends.vllm.draw import NAME as DRAW
from services.engine.generation import BackendError

if TYPE_CHECKING:
    from services.settings import EngineSettings

# Enough for a small model's requests. What vLLM would take by itself is most of the memory, once for every pod.
_CPU_CACHE_BYTES = 1 << 30

_SETTINGS = {
    "model": "set MODEL_NAME",
    "max_num_seqs": "set MAX_CONCURRENT_REQUESTS",
    "kv_cache_memory_bytes": "set KV_CACHE_BYTES",
    "dtype": "set DTYPE",
    "max_model_len": "set MAX_MODEL_LEN",
    "gpu_memory_utilization": "set GPU_MEMORY_UTILIZATION",
    "tensor_parallel_size": "set TENSOR_PARALLEL_SIZE",
    "enable_prefix_caching": "set ENABLE_PREFIX_CACHING",
    "quantization": "set QUANTIZATION",
}


class _Parser(FlexibleArgumentParser):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """Raises where argparse would end the process."""

    def error(self, message: str) -> NoReturn:
        raise BackendError(f"VLLM_ARGS: {message}")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:  # noqa: ARG002 - argparse's signature
        raise BackendError(f"VLLM_ARGS: {(message or 'an option that only prints').strip()}")


def engine_args(settings: EngineSettings, folder: Path) -> AsyncEngineArgs:
    """VLLM's arguments for the model in `folder`. Raises `BackendError` if VLLM_ARGS names what it does not know, or what is Convoy's."""
    ours = _ours(settings, folder)
    parser = AsyncEngineArgs.add_cli_args(_Parser(prog="VLLM_ARGS", add_help=False))
    given, plain = (AsyncEngineArgs.from_cli_args(parser.parse_args(words)) for words in (shlex.split(settings.vllm_args), []))
    for name, value in ours.items():
        if getattr(given, name) != getattr(plain, name):
            raise BackendError(f"VLLM_ARGS: --{name.replace('_', '-')} is Convoy's own: {_SETTINGS.get(name, 'it cannot be changed')}")
        setattr(given, name, value)
    return given


def _ours(settings: EngineSettings, folder: Path) -> dict[str, Any]:
    is_cpu = current_platform.is_cpu()
    _check_device(settings.device, is_cpu=is_cpu)
    dtype = choose_dtype(settings.dtype, torch.device("cpu" if is_cpu else "cuda"))
    args: dict[str, Any] = {
        "model": str(folder),
        "tokenizer": None,
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "load_format": "safetensors",
        "use_tqdm_on_load": False,
        "dtype": dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch."),
        "max_model_len": settings.max_model_len or None,
        "max_num_seqs": settings.max_concurrent_requests,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "enable_prefix_caching": settings.enable_prefix_caching,
        "quantization": settings.quantization or None,
        "kv_cache_memory_bytes": settings.kv_cache_bytes or (_CPU_CACHE_BYTES if is_cpu else None),
        "logits_processors": [DRAW],
        "generation_config": "vllm",
        "disable_log_stats": True,
        "enable_log_requests": False,
    }
    return args


def _check_device(device: str, *, is_cpu: bool) -> None:
    have, other = ("a processor", "gpu") if is_cpu else ("GPUs", "cpu")
    if device in {"auto", "cpu" if is_cpu else "cuda"}:
        return
    cure = f"VLLM_BUILD={other} installs another"
    if device.startswith("cuda:") and not is_cpu:
        cure = "choose one with CUDA_VISIBLE_DEVICES"
    raise BackendError(f"DEVICE={device}: the vLLM that is installed runs on {have}; {cure}, or leave DEVICE=auto")


def check_machine(config: Any) -> None:
    """Raises `BackendError` if the machine lacks what vLLM loads or compiles with; it would say so in the middle of the first request."""
    if current_platform.is_cpu():
        try:
            ctypes.CDLL("libnuma.so.1")
        except OSError as error:
            raise BackendError("ENGINE=vllm on a processor needs libnuma (Debian, Ubuntu: apt install libnuma1)") from error
    if config.compilation_config.mode == CompilationMode.NONE:
        return
    compiler = inductor.cpp.cxx[1]
    header = Path(sysconfig.get_path("include"), "Python.h")
    missing = f"a C++ compiler ({compiler})" if not shutil.which(compiler) else "" if header.is_file() else f"Python's headers ({header})"
    if missing:
        raise BackendError(
            f"ENGINE=vllm compiles the model, for which {missing} must be installed (Debian, Ubuntu: apt install g++ python3-dev); "
            "VLLM_ARGS=--enforce-eager does without, slower"
        )


def prepare_environment(settings: EngineSettings) -> None:
    """What vLLM reads from the environment when it starts; the pod's process is its own."""
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["VLLM_COMPUTE_NANS_IN_LOGITS"] = "1"  # a request on which the model breaks must fail, not answer nonsense
    os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # `Draw` is written for the first one, which is the only one without Triton
    if current_platform.is_cpu():
        # What it compiles ahead of time for a processor it cannot load again (0.32), and compiles anew at each start.
        os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
    os.environ["OMP_NUM_THREADS"] = str(settings.num_threads or len(os.sched_getaffinity(0)))
    # Pods share the cores: bound threads of two pods would stand on the same ones.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
