"""The transformers backend against `model.generate` at the same batch, in one run: ratios of tokens per second, no HTTP between.

`python -m bench.transformers_batch` prints a table. The model is random, of the demo model's size; the rounds alternate, so that a noisy
machine hits both alike. "mixed" prompts have different lengths (generate pads them).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from services.engine.backends.transformers.backend import TransformersBackend
from services.engine.generation import GenerationRequest, SamplingParams
from services.settings import EngineSettings

if TYPE_CHECKING:
    from collections.abc import Callable

VOCABULARY = 4096
GREEDY = SamplingParams(seed=0, temperature=0)
WAYS = {
    "greedy": GREEDY,
    "temperature 0.7": SamplingParams(seed=1, temperature=0.7),
    "and top_p 0.95": SamplingParams(seed=1, temperature=0.7, top_p=0.95),
}
BATCHES = ((1, "equal"), (8, "equal"), (8, "mixed"), (32, "equal"), (32, "mixed"))


def save_model(folder: Path) -> None:
    """A random model of the demo model's size."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {f"t{index}": index for index in range(VOCABULARY)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))).save_pretrained(folder)  # noqa: S106 - no secret


def prompts(number: int, kind: str) -> list[list[int]]:
    """Random prompts of 48 tokens, or of 16 to 80."""
    lengths = [48] * number if kind == "equal" else [16 + (29 * index) % 65 for index in range(number)]
    return [torch.randint(0, VOCABULARY, (length,)).tolist() for length in lengths]


def generate(model: Any, wanted: list[list[int]], num_tokens: int) -> None:
    """All prompts in one call of model.generate, greedy, padded on the left."""
    width = max(map(len, wanted))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in wanted])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in wanted])
    model.generate(ids, attention_mask=mask, max_new_tokens=num_tokens, do_sample=False, pad_token_id=0)


async def consume(backend: TransformersBackend, prompt: list[int], sampling: SamplingParams, num_tokens: int) -> None:
    """Reads one answer to its end."""
    request = GenerationRequest("bench", prompt, sampling, num_tokens)
    async with aclosing(backend.generate(request)) as events:  # type: ignore[type-var]  # it is an async generator
        async for _ in events:
            pass


async def batch(backend: TransformersBackend, wanted: list[list[int]], sampling: SamplingParams, num_tokens: int) -> None:
    """All prompts at once through the backend."""
    await asyncio.gather(*(consume(backend, prompt, sampling, num_tokens) for prompt in wanted))


async def lag_p99_ms(work: asyncio.Future[Any]) -> float:
    """How late the event loop wakes while `work` runs, 99th percentile in milliseconds."""
    lags = []
    while not work.done():
        start = time.perf_counter()
        await asyncio.sleep(0.002)
        lags.append((time.perf_counter() - start - 0.002) * 1000)
    return statistics.quantiles(lags, n=100)[98]


def timed(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


async def compare(backend: TransformersBackend, model: Any, number: int, kind: str, options: argparse.Namespace) -> list[float]:
    """Tokens per second of the backend by those of generate, for each way to sample; the median of the rounds."""
    ratios: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(options.rounds + 1):
        wanted = prompts(number, kind)
        theirs = await asyncio.to_thread(timed, lambda wanted=wanted: generate(model, wanted, options.tokens))  # type: ignore[misc]
        for way, sampling in WAYS.items():
            start = time.perf_counter()
            await batch(backend, wanted, sampling, options.tokens)
            if turn:  # the first round warms up
                ratios[way].append(theirs / (time.perf_counter() - start))
    return [statistics.median(found) for found in ratios.values()]


async def run(options: argparse.Namespace) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        settings = EngineSettings(model_name=folder, device="cpu", dtype="float32", num_threads=options.threads, max_concurrent_requests=32)
        backend = TransformersBackend(settings)
        await backend.start(lambda _: None)
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    print(f"backend by model.generate, tokens per second, {options.threads} thread(s), median of {options.rounds} rounds")
    print("batch", "prompts", *WAYS, sep=" | ")
    for number, kind in BATCHES:
        ratios = await compare(backend, model, number, kind, options)
        print(number, kind, *(f"{ratio:.2f}x" for ratio in ratios), sep=" | ", flush=True)
    work = asyncio.ensure_future(batch(backend, prompts(8, "mixed"), WAYS["temperature 0.7"], 4 * options.tokens))
    print(f"event loop lag while 8 generate, p99: {await lag_p99_ms(work):.1f} ms")
    await backend.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    asyncio.run(run(parser.parse_args()))
