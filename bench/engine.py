"""The transformers pod, asked over HTTP, beside `model.generate` with the same prompts in one batch: tokens per second."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.engines import DEMO, QUESTIONS
from bench.measuring import Round, Section, ask, interleaved, median, ratio, verdict
from tests.running import running_pods

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PATH = "/v1/chat/completions"
TOKENS = 64
THREADS = 1
AT_ONCE, AIM = (1, 8, 32), 0.9


def messages(index: int) -> list[dict[str, str]]:
    """The conversation of the index-th request."""
    return [{"role": "user", "content": QUESTIONS[index % len(QUESTIONS)]}]


def generator(number: int) -> Callable[[], Awaitable[Round]]:
    """A round of `model.generate` on a batch of `number` prompts, sampled as the pod samples, in a thread of its own."""
    tokenizer: Any = AutoTokenizer.from_pretrained(DEMO)
    model: Any = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    tokenizer.padding_side = "left"
    texts = [tokenizer.apply_chat_template(messages(index), tokenize=False, add_generation_prompt=True) for index in range(number)]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False)

    def generate() -> float:
        torch.set_num_threads(THREADS)
        start = time.perf_counter()
        model.generate(**inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=True, temperature=0.7, top_k=0)
        return time.perf_counter() - start

    async def round_() -> Round:
        return Round(await asyncio.to_thread(generate) * 1e6, 0)

    return round_


def pod(url: str, number: int, *, stream: bool) -> Callable[[], Awaitable[Round]]:
    """A round of `number` requests at once."""

    async def round_() -> Round:
        options = {"temperature": 0.7, "max_tokens": TOKENS, "ignore_eos": True, "stream": stream}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            start = time.perf_counter()
            await asyncio.gather(*(ask(session, url + PATH, {"messages": messages(index)} | options) for index in range(number)))
            return Round((time.perf_counter() - start) * 1e6, 0)

    return round_


async def measure(rounds: int = 5) -> list[Section]:
    """1, 8 and 32 at once."""
    section = Section(
        "The transformers pod beside model.generate",
        ["at once", "model.generate, tokens/s", "pod, streams, tokens/s", "streams ÷ generate", "JSON ÷ generate"],
        notes=f"Demo model in float32, {THREADS} thread each, {TOKENS} tokens an answer at temperature 0.7, median of {rounds} interleaved "
        "rounds. The pod is asked over HTTP and does everything that serving asks for.",
    )
    with running_pods(1, engine="transformers", dtype="float32", num_threads=THREADS, max_concurrent_requests=32) as pods:
        for number in AT_ONCE:
            contestants = {
                "generate": generator(number),
                "streams": pod(pods.url, number, stream=True),
                "json": pod(pods.url, number, stream=False),
            }
            await interleaved(1, **contestants)  # warm-up
            results = await interleaved(rounds, **contestants)
            seconds = {name: [result.p50_us / 1e6 for result in results[name]] for name in contestants}
            speed = {name: number * TOKENS / median(values) for name, values in seconds.items()}
            faster = {name: ratio(seconds["generate"], seconds[name]) for name in ("streams", "json")}
            shown = [verdict(value, AIM, at_most=False) for value in faster.values()]
            section.rows.append([str(number), f"{speed['generate']:.0f}", f"{speed['streams']:.0f}", *shown])
        lag = await loop_lag(pods.url)
    return [section, lag]


async def loop_lag(url: str) -> Section:
    """How long a question that costs nothing waits for the event loop, idle and while eight requests generate."""
    section = Section(
        "The pod's event loop while it generates",
        ["state", "/livez p50", "/livez p99"],
        notes="Time to answer `/livez`, asked every 5 ms over one connection; the engine's thread and the client share the cores.",
    )
    section.rows.append(["idle", *await livez(url, asyncio.create_task(asyncio.sleep(3)))])
    options = {"messages": messages(0), "max_tokens": 400, "ignore_eos": True, "stream": True}
    async with aiohttp.ClientSession() as session:
        work = asyncio.gather(*(ask(session, url + PATH, options) for _ in range(8)))
        section.rows.append(["8 streams generate", *await livez(url, work)])
    return section


async def livez(url: str, work: asyncio.Future[Any]) -> list[str]:
    """Median and 99th percentile of the time to answer while `work` goes on."""
    seconds = []
    async with aiohttp.ClientSession() as session:
        while not work.done():
            start = time.perf_counter()
            async with session.get(url + "/livez") as response:
                await response.read()
            seconds.append(time.perf_counter() - start)
            await asyncio.sleep(0.005)
    await work
    return [f"{statistics.median(seconds) * 1000:.1f} ms", f"{statistics.quantiles(seconds, n=100)[98] * 1000:.1f} ms"]
