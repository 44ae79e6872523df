"""`python -m bench.async_llm ROUNDS`, in vLLM's environment: AsyncLLM alone, without HTTP and without Convoy.

Prints a JSON object: tokens a second, by the number of clients, asked as vLLM's own server asks it, text included; and as `draw`, how
many times as fast it is where Convoy's function draws the tokens.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from statistics import median

from transformers import AutoTokenizer
from vllm import AsyncEngineArgs, SamplingParams
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from bench.engines import CLIENTS, DEMO, DTYPE, QUESTIONS, SLOTS, TOKENS
from services.engine.backends.vllm.draw import KEY, NAME

DRAWING = 32
"""Clients where the cost of drawing is measured."""


def engine_of(**more: object) -> AsyncLLM:
    """VLLM's engine as the bench of the servers has it."""
    arguments = AsyncEngineArgs(
        model=str(DEMO),
        dtype=DTYPE,
        max_num_seqs=SLOTS,
        kv_cache_memory_bytes=1 << 30,
        disable_log_stats=True,
        **more,
    )
    return AsyncLLM.from_engine_args(arguments)


def prompts() -> list[list[int]]:
    """The questions, in tokens."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    talks = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False) for talk in talks]


async def speed(engine: AsyncLLM, params: SamplingParams, clients: int, requests: int) -> float:
    """Tokens a second of clients that ask again as soon as they are answered."""
    todo, asked, start = list(range(requests)), prompts(), time.perf_counter()

    async def client() -> None:
        while todo:
            number = todo.pop()
            name = f"{time.monotonic_ns()}-{number}"
            async for _ in engine.generate(tokens_input(list(asked[number % len(asked)])), params, name):
                pass

    await asyncio.gather(*(client() for _ in range(clients)))
    return requests * TOKENS / (time.perf_counter() - start)


async def run(rounds: int) -> dict[str, float]:
    """As many clients as in the bench of the servers; and vLLM's own sampling beside ours, in turn."""
    common = {"max_tokens": TOKENS, "ignore_eos": True, "output_kind": RequestOutputKind.DELTA}
    params = SamplingParams(temperature=0.7, **common)
    engine = engine_of()
    speeds = {}
    for clients, requests in CLIENTS.items():
        found = [await speed(engine, params, clients, requests) for _ in range(rounds + 1)]
        speeds[str(clients)] = median(found[1:])  # the first was the warm-up
    drawing = engine_of(logits_processors=[NAME])
    drawn = SamplingParams(temperature=0.0, extra_args={KEY: (1, 0.7, 0, 1.0, 0.0, 0)}, **common)
    both = (engine, params), (drawing, drawn)
    pairs = [[await speed(one, how, DRAWING, 4 * DRAWING) for one, how in both] for _ in range(2 * rounds + 1)]
    speeds["draw"] = median(ours / theirs for theirs, ours in pairs[1:])
    for one in (engine, drawing):
        one.shutdown()
    return speeds


if __name__ == "__main__":
    print("\n" + json.dumps(asyncio.run(run(int(sys.argv[1])))))
