"""`python -m bench.async_llm ROUNDS`, in vLLM's environment: AsyncLLM alone, without HTTP and without Convoy.

Prints a JSON object: tokens a second, by the number of clients. It is asked as vLLM's own server asks it, text included.
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


async def run(rounds: int) -> dict[int, float]:
    """Clients that ask again as soon as they are answered, as many as in the bench of the servers."""
    arguments = AsyncEngineArgs(
        model=str(DEMO), dtype=DTYPE, max_num_seqs=SLOTS, kv_cache_memory_bytes=1 << 30, enforce_eager=True, disable_log_stats=True
    )
    engine = AsyncLLM.from_engine_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": one}], tokenize=False, add_generation_prompt=True) for one in QUESTIONS
    ]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    params = SamplingParams(temperature=0.7, max_tokens=TOKENS, ignore_eos=True, output_kind=RequestOutputKind.DELTA)

    async def client(todo: list[int]) -> None:
        while todo:
            number = todo.pop()
            async for _ in engine.generate(tokens_input(list(prompts[number % len(prompts)])), params, f"{time.monotonic_ns()}-{number}"):
                pass

    speeds: dict[int, float] = {}
    for clients, requests in CLIENTS.items():
        seconds = []
        for _ in range(rounds + 1):  # the first is the warm-up
            todo, start = list(range(requests)), time.perf_counter()
            await asyncio.gather(*(client(todo) for _ in range(clients)))
            seconds.append(time.perf_counter() - start)
        speeds[clients] = requests * TOKENS / median(seconds[1:])
    engine.shutdown()
    return speeds


if __name__ == "__main__":
    print("\n" + json.dumps(asyncio.run(run(int(sys.argv[1])))))
