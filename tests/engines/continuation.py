"""`python -m tests.engines.continuation PROMPTS`: is an answer the same wherever it was cut and whoever shares its batch?

Runs ENGINE's backend as the environment's settings say, in the engine's own Python. Prints one JSON object: how many of how many answers
are equal to the one that was generated alone and uncut, by what was done.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec

from services.engine.backends import create_generator
from services.engine.environment import python_of
from services.engine.generation import GenerationRequest, SamplingParams
from services.engine.token_generator import TokenGenerator
from services.settings import EngineSettings, load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.engine.generation import Backend

TOKENS, CUTS, SLOTS = 64, (1, 10, 30), 32
TOPICS = ("Docker", "FastAPI", "retry budgets", "a load balancer", "Kubernetes", "tokens", "a circuit breaker", "SQL", "caches", "queues")
ASKED = ("Tell me about {}.", "What is {}?", "Explain {} in simple terms", "Why would I use {}?", "How does one test {}?")
WAYS = {
    "greedy": SamplingParams(seed=0, temperature=0.0),
    "sampled": SamplingParams(seed=0, temperature=0.8, top_k=50, top_p=0.95, min_p=0.02),
}


def prompts(generator: TokenGenerator, number: int) -> list[list[int]]:
    """So many conversations that are not alike, in tokens."""
    texts = [asked.format(topic) for asked in ASKED for topic in TOPICS]
    more = [f"{text} Answer number {number} please, and be brief." for number in range(20) for text in texts]
    return [generator.tokenizer.encode_chat([{"role": "user", "content": text}]) for text in (texts + more)[:number]]


async def answer(backend: Backend, request: GenerationRequest) -> list[int]:
    """All tokens of an answer, those before the cut too."""
    tokens = list(request.resume_token_ids)
    async with aclosing(backend.generate(request)) as events:  # type: ignore[type-var]  # backends write async generators
        async for event in events:
            tokens += event.token_ids
    return tokens


async def together(backend: Backend, requests: Sequence[GenerationRequest]) -> list[list[int]]:
    """All answers, as many at a time as there are slots."""
    slots = asyncio.Semaphore(SLOTS)

    async def one(request: GenerationRequest) -> list[int]:
        async with slots:
            return await answer(backend, request)

    return await asyncio.gather(*(one(request) for request in requests))


async def compare(backend: Backend, generator: TokenGenerator, number: int) -> dict[str, tuple[int, int]]:
    """The counts, greedy and sampled answers mixed in the batches."""
    requests = {
        (way, index): GenerationRequest(
            f"{way}-{index}", prompt, msgspec.structs.replace(sampling, seed=index * 7919 + 11), TOKENS + 3 * (index % 2) - 3
        )
        for way, sampling in WAYS.items()
        for index, prompt in enumerate(prompts(generator, number))
    }
    whole = {key: await answer(backend, request) for key, request in requests.items()}
    counts: dict[str, tuple[int, int]] = {}

    def count(what: str, found: dict[tuple[str, int], list[int]]) -> None:
        for way in WAYS:
            keys = [key for key in found if key[0] == way]
            counts[f"{way}, {what}"] = (sum(found[key] == whole[key] for key in keys), len(keys))

    count("uncut, in a batch", dict(zip(requests, await together(backend, list(requests.values())), strict=True)))
    for cut in CUTS:
        resumed = {
            key: msgspec.structs.replace(request, request_id=f"{request.request_id}-{cut}", resume_token_ids=whole[key][:cut])
            for key, request in requests.items()
        }
        count(f"cut after {cut}, alone", {key: await answer(backend, request) for key, request in resumed.items()})
        count(f"cut after {cut}, in a batch", dict(zip(resumed, await together(backend, list(resumed.values())), strict=True)))
    return counts


async def main(number: int) -> dict[str, tuple[int, int]]:
    """Starts the engine, compares, stops it."""
    generator = create_generator(load(EngineSettings), "engine-1")
    assert isinstance(generator, TokenGenerator)
    await generator.start(lambda _: None)
    try:
        return await compare(generator.backend, generator, number)
    finally:
        await generator.stop()


if __name__ == "__main__":
    python = python_of(os.environ["ENGINE"])
    if python != sys.executable:
        os.execv(python, [python, "-m", "tests.engines.continuation", *sys.argv[1:]])  # noqa: S606 - our own program
    sys.stdout.write("\n" + msgspec.json.encode(asyncio.run(main(int(sys.argv[1])))).decode() + "\n")
