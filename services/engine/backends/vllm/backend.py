"""The vLLM engine as the rest of the pod sees it: AsyncLLM in the pod's process, its engine core in one of its own."""

from __future__ import annotations

import asyncio
import multiprocessing.connection
import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind
from vllm.sampling_params import SamplingParams as VllmSampling
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.utils import CoreEngineProcManager
from vllm.v1.metrics.loggers import StatLoggerBase

from services.engine.backends import on_loop
from services.engine.backends.huggingface.choosing import choose_context, eos_ids, sampling_defaults
from services.engine.backends.huggingface.locating import locate
from services.engine.backends.huggingface.tokenizer import ModelTokenizer
from services.engine.backends.vllm.arguments import check_machine, engine_args, prepare_environment
from services.engine.backends.vllm.draw import KEY
from services.engine.backends.vllm.following import leave_the_pod
from services.engine.backends.vllm.outputs import Outputs
from services.engine.generation import BackendError, BackendUnavailable, Load, ModelInfo, TokenEvent, check_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from services.engine.generation import GenerationRequest
    from services.settings import EngineSettings

_STOP_SECONDS = 5.0
# In vLLM's words: a process of the engine core and its exit code, which is negative after a signal.
_KILLED = re.compile(r"Failed core proc\(s\): \{[^}]*: -(\d+)")


@dataclass(frozen=True, slots=True)
class _Started:
    engine: AsyncLLM
    tokenizer: Any
    eos_token_ids: frozenset[int]
    info: ModelInfo


class VllmBackend:
    """A model served by vLLM, which batches by itself."""

    def __init__(self, settings: EngineSettings) -> None:
        """Starts nothing yet."""
        self._settings = settings
        self._stats = Stats()
        self._started: _Started
        self._progress: Callable[[str], None]
        self._is_open = False
        # The kernel ends the engine core with the thread that started it, so that one lives as long as the engine.
        self._thread = threading.Thread(target=self._hold, name="vllm", daemon=True)
        self._is_over = threading.Event()

    async def start(self, progress: Callable[[str], None]) -> ModelInfo:
        """Starts the engine core and loads the model there. Raises `BackendError`."""
        self._loop = loop = asyncio.get_running_loop()
        self._progress = lambda line: on_loop.call(loop, progress, line)
        self._death: asyncio.Future[str] = loop.create_future()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._thread.start()
        await self._ready
        self._started.engine.output_processor = self._outputs = Outputs(self._die)
        self._is_open = True
        return self._started.info

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        """Events of one request; closing the iterator takes it out of the engine core before its next step. Raises `BackendError`."""
        if not self._is_open:
            raise BackendError("the engine does not run")
        if self._death.done():
            raise BackendUnavailable("the engine has died")
        started, num_before = self._started, len(request.resume_token_ids)
        check_request(request, started.info)
        num_left = min(request.max_tokens, started.info.context_tokens - len(request.prompt_token_ids)) - num_before
        if num_left <= 0:
            yield TokenEvent(finish_reason="length")
            return
        prompt = tokens_input([*request.prompt_token_ids, *request.resume_token_ids])
        try:
            queue = await started.engine.add_request(request.request_id, prompt, _sampling(request, num_left))
        except EngineDeadError as error:
            raise BackendUnavailable("the engine has died") from error
        except (ValueError, RuntimeError) as error:
            raise BackendError(f"vLLM refused the request: {error}") from error
        mailbox, is_over = self._outputs.mailbox(queue.request_id), False
        try:
            while not is_over:
                event = await mailbox.get()
                is_over = event.finish_reason is not None
                event.num_cached_tokens = min(event.num_cached_tokens, len(request.prompt_token_ids))  # it counts what is resumed, too
                yield event
        finally:
            if not is_over:
                with suppress(EngineDeadError):
                    await started.engine.abort(queue.request_id, internal=True)

    def load(self) -> Load:
        """As of the last step."""
        told = self._stats.told
        if told is None:
            return Load()
        rate = self._outputs.rate.per_second if told.num_running_reqs else 0.0
        waiting = told.num_waiting_reqs + told.num_skipped_waiting_reqs
        return Load(running=told.num_running_reqs, waiting=waiting, tokens_per_second=rate, cache_usage=told.kv_cache_usage)

    async def died(self) -> str:
        """When the engine core's process has ended."""
        return await asyncio.shield(self._death)

    async def stop(self) -> None:
        """Ends the engine core."""
        self._is_open = False
        if hasattr(self, "_started"):
            await asyncio.to_thread(self._started.engine.shutdown, _STOP_SECONDS)
        self._is_over.set()

    def tokenizer(self) -> ModelTokenizer:
        """The model's tokenizer; to be called after `start`."""
        return ModelTokenizer(self._started.tokenizer, self._started.eos_token_ids)

    def _die(self, reason: str) -> None:
        if self._is_open and not self._death.done():
            self._death.set_result(reason)

    def _hold(self) -> None:
        """The thread: starts the engine, and stays until it was stopped."""
        try:
            self._started = self._start()
        except BackendError as error:
            on_loop.settle(self._loop, self._ready, error)
        except Exception as error:  # noqa: BLE001 - the boundary: whatever vLLM raises while it loads becomes one line
            on_loop.settle(self._loop, self._ready, _broken(error, self._settings.model_name))
        else:
            on_loop.settle(self._loop, self._ready, None)
        self._is_over.wait()

    def _start(self) -> _Started:
        settings = self._settings
        prepare_environment(settings)
        folder = locate(settings.model_name, self._progress)
        self._progress(f"starting vLLM with {settings.model_name}")
        hf_config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        context_tokens = choose_context(settings.max_model_len, hf_config)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if not tokenizer.is_fast:
            raise BackendError(f"MODEL_NAME={settings.model_name}: it has no fast tokenizer (tokenizer.json), which serving needs")
        config = engine_args(settings, folder).create_engine_config()
        check_machine(config)
        # OpenMP was loaded with the imports, before the environment could tell it how many; a fork takes this over from its thread.
        torch.set_num_threads(settings.num_threads or len(os.sched_getaffinity(0)))
        engine = _launch(config, self._stats)
        size, generation = config.model_config.get_vocab_size(), _generation_config(folder, hf_config)
        dtype = str(config.model_config.dtype).removeprefix("torch.")
        cache = engine.vllm_config.cache_config
        # The last block of each request is not full.
        cache_tokens = max(1, (cache.num_gpu_blocks or 0) - settings.max_concurrent_requests) * cache.block_size
        own, device = sampling_defaults(generation), config.device_config.device_type
        info = ModelInfo(context_tokens, size, device, dtype, own, cache_tokens, preempts=True)
        return _Started(engine, tokenizer, eos_ids(generation, hf_config, tokenizer, size), info)


class Stats(StatLoggerBase):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """What the engine core tells of its last step."""

    def __init__(self) -> None:
        """Nothing was told yet."""
        self.told: Any = None
        """vLLM's SchedulerStats."""

    def record(self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0) -> None:  # noqa: ARG002
        """Keeps the last."""
        if scheduler_stats is not None:
            self.told = scheduler_stats

    def log_engine_initialized(self) -> None:
        """Nothing to say."""


def _broken(error: Exception, model_name: str) -> BackendError:
    """An engine core that was killed while it loaded, for its memory say, may come up another time."""
    killed = _KILLED.search(str(error))
    if killed:
        return BackendUnavailable(f"the engine core was killed by signal {killed[1]} while it loaded")
    reason = str(error).strip().split("\n", 1)[0]
    return BackendError(f"MODEL_NAME={model_name}: vLLM cannot load it: {type(error).__name__}: {reason}")


def _finished(manager: CoreEngineProcManager) -> dict[str, int]:
    """In place of vLLM's: a process's pipe closes a moment before its exit code can be had, and without that nobody knows how it died."""
    ended = multiprocessing.connection.wait(manager.sentinels(), 0)
    for process in manager.processes:
        if process.sentinel in ended:
            process.join(_STOP_SECONDS)
    return {process.name: process.exitcode for process in manager.processes if process.exitcode is not None}


def _launch(config: Any, stats: Stats) -> AsyncLLM:
    """The engine. vLLM forks its core, which saves the imports, but on a processor, where it need not and has it imported anew."""
    os.register_at_fork(after_in_child=leave_the_pod)
    CoreEngineProcManager.finished_procs = _finished
    if config.device_config.device_type == "cpu":
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        # One process less in each step. vLLM has the worker apart only to set its threads, which is done already.
        if config.parallel_config.world_size == 1:
            config.parallel_config.distributed_executor_backend = "uni"
    return AsyncLLM.from_vllm_config(config, disable_log_stats=True, stat_loggers=[lambda *_: stats])


def _sampling(request: GenerationRequest, num_left: int) -> VllmSampling:
    own, num_before = request.sampling, len(request.resume_token_ids)
    return VllmSampling(
        temperature=0.0,  # whatever `Draw` has drawn is the best
        max_tokens=num_left,
        min_tokens=min(num_left, max(0, request.min_tokens - num_before)),
        stop_token_ids=sorted(request.stop_token_ids),
        ignore_eos=True,
        detokenize=False,
        skip_clone=True,  # nobody else has it
        output_kind=RequestOutputKind.DELTA,
        extra_args={KEY: (own.seed, own.temperature, own.top_k, own.top_p, own.min_p, num_before)},
    )


def _generation_config(folder: Path, config: Any) -> Any:
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:  # it has none
        return GenerationConfig.from_model_config(config)
