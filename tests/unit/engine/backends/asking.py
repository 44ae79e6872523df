"""What the tests of the backend ask it, and how they read its answers."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

import torch
from transformers import LlamaForCausalLM

from services.engine.generation import GenerationRequest, SamplingParams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from services.engine.backends.transformers.backend import TransformersBackend
    from services.engine.generation import FinishReason, TokenEvent

NEW_TOKENS = 24
GREEDY = SamplingParams(seed=0, temperature=0)
SAMPLED = SamplingParams(seed=77, temperature=1.2, top_k=50, top_p=0.95, min_p=0.01)
DEADLINE_SECONDS = 60


def prompts(number: int) -> list[list[int]]:
    """Prompts of very different lengths, from one token to more than one step may read."""
    generator = torch.Generator().manual_seed(number)
    lengths = [1, 2, 300, 600, *torch.randint(3, 90, (number - 4,), generator=generator).tolist()]
    return [torch.randint(7, 263, (length,), generator=generator).tolist() for length in lengths]


def request(prompt: Sequence[int], sampling: SamplingParams = GREEDY, max_tokens: int = NEW_TOKENS, **rest: object) -> GenerationRequest:
    """A request that only `max_tokens` ends."""
    return GenerationRequest("r", prompt, sampling, max_tokens, **rest)  # type: ignore[arg-type]


async def answer(backend: TransformersBackend, wanted: GenerationRequest) -> tuple[list[int], FinishReason | None, int]:
    """All tokens, the finish reason, and the number of tokens counted."""
    tokens: list[int] = []
    reason, num_tokens = None, 0
    async with aclosing(backend.generate(wanted)) as events:  # type: ignore[type-var]  # it is an async generator
        async for event in events:
            tokens += event.token_ids
            num_tokens += event.num_tokens
            reason = event.finish_reason
    return tokens, reason, num_tokens


async def tokens_of(backend: TransformersBackend, wanted: GenerationRequest) -> list[int]:
    """All tokens of the answer."""
    return (await answer(backend, wanted))[0]


async def read_to_end(events: AsyncIterator[TokenEvent]) -> None:
    """Reads what is left."""
    async for _ in events:
        pass


async def until_idle(backend: TransformersBackend) -> None:
    """Waits until no row runs."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while backend.load().running:
        assert time.monotonic() < deadline, backend.load()
        await asyncio.sleep(0.005)


def generated(folder: Path, wanted: list[list[int]]) -> list[list[int]]:
    """What model.generate answers to each prompt, greedy, alone."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    outputs = [model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0) for prompt in wanted]
    return [output[0, len(prompt) :].tolist() for prompt, output in zip(wanted, outputs, strict=True)]
