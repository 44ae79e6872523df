"""The batching strategies under the same load, what a long prompt does to others, and ways to keep a cache: docs/batching.md's figures."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from bench import mix
from bench.measuring import ROOT, Section, median, verdict
from services.engine.backends.transformers.forward import Forward
from services.engine.backends.transformers.pace import alike
from services.ops.load.arrivals import poisson
from services.ops.load.client import run_load
from services.ops.load.plot import Axis, Series, line_chart
from services.ops.load.summary import percentile
from tests.running import running_pods

if TYPE_CHECKING:
    from services.ops.load.outcome import Outcome

STRATEGIES = ("none", "window", "continuous")
FACTORS = (0.15, 0.4, 0.8)
"""Of what `continuous` can do."""
SLOTS, LEAD_SECONDS, SECONDS = 16, 5.0, 30.0
PICTURE = ROOT / "docs" / "batching.svg"
LONG_TOKENS, GAP_AIM = 3000, 3.0
_ENGINE: dict[str, Any] = {"engine": "transformers", "num_threads": 1, "max_concurrent_requests": SLOTS, "queue_capacity": 256}


@dataclass(frozen=True, slots=True)
class Seen:
    """One strategy at one rate: tokens a second, and seconds."""

    tokens_per_second: float
    ttft_p50: float
    ttft_p95: float
    latency_p95: float
    gap_p95: float
    refused: float

    @classmethod
    def of(cls, outcomes: list[Outcome], length: dict[str, int]) -> Seen:
        """Counts what ended while it was counted, and the times of what was asked then."""
        ended = [one for one in outcomes if one.is_whole and LEAD_SECONDS <= one.ended < LEAD_SECONDS + SECONDS]
        asked = [one for one in outcomes if one.stage == 1]
        whole = [one for one in asked if one.is_whole]
        ttfts = sorted(one.ttft for one in whole if one.ttft is not None) or [0.0]
        gaps = sorted(gap for one in whole for gap in one.gaps) or [0.0]
        return cls(
            sum(length[one.kind] for one in ended) / SECONDS,
            percentile(ttfts, 0.5),
            percentile(ttfts, 0.95),
            percentile(sorted(one.latency for one in whole) or [0.0], 0.95),
            percentile(gaps, 0.95),
            1 - len(whole) / max(1, len(asked)),
        )


async def strategies() -> Section:
    """Each strategy at each rate, and the picture."""
    section = Section(
        "Batching strategies",
        ["BATCHING", "load", "tokens/s", "TTFT p50", "TTFT p95", "token to token, p95", "whole answer, p95", "refused"],
    )
    rate, lines = 0.0, []
    for batching in reversed(STRATEGIES):
        points: list[tuple[float, float | None]] = []
        with running_pods(1, **_ENGINE, batching=batching) as pods:
            if not rate:
                await mix.capacity(pods.url, SLOTS, LEAD_SECONDS)
                rate = await mix.capacity(pods.url, SLOTS, SECONDS)
            for factor in FACTORS:
                stages = [poisson(rate * factor, LEAD_SECONDS), poisson(rate * factor, SECONDS)]
                kinds = mix.mix(60)
                outcomes = await run_load(pods.url, kinds, stages, seed=int(factor * 100), time_limit=120)
                seen = Seen.of(outcomes, mix.lengths(kinds))
                points.append((seen.tokens_per_second, seen.latency_p95))
                section.rows.append(_row(batching, factor, seen))
        lines.append(Series(f"BATCHING={batching}", points))
    PICTURE.write_text(
        line_chart(
            "Throughput against latency",
            lines,
            Axis("tokens per second", lower=0.0),
            Axis("p95 of the whole answer, seconds", is_log=True),
        )
    )
    section.notes = (
        f"One transformers pod of {SLOTS} slots, the demo model, one compute thread; JSON and streams of {mix.MEAN_TOKENS:.0f} tokens on "
        f"average, Poisson arrivals, {SECONDS:g} s each after {LEAD_SECONDS:g} s. 1× is {rate:.1f} requests/s, what `continuous` can do in "
        "a closed loop. Refused: admission saw that QUEUE_TIMEOUT_SECONDS could not be kept."
        "\n\n![Throughput against latency](batching.svg)"
    )
    return section


def _row(batching: str, factor: float, seen: Seen) -> list[str]:
    times = [seen.ttft_p50, seen.ttft_p95, seen.gap_p95, seen.latency_p95]
    return [
        batching,
        f"{factor:g}×",
        f"{seen.tokens_per_second:.0f}",
        *[f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s" for value in times],
        f"{seen.refused:.0%}",
    ]


async def _gaps(url: str, tokens: int) -> list[float]:
    """Times between reads that brought text, of one stream."""
    body = {"messages": [{"role": "user", "content": "Tell me about distributed systems."}], "max_tokens": tokens, "ignore_eos": True}
    gaps, last = [], 0.0
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + "/v1/chat/completions", json=body | {"stream": True}) as response,
    ):
        async for data in response.content.iter_any():
            if b'"content":' in data:
                now = time.perf_counter()
                if last:
                    gaps.append(now - last)
                last = now
    return gaps


async def long_prompts(rounds: int = 3) -> Section:
    """Eight streams' gaps between tokens, alone and while long prompts come one after the other."""
    section = Section(
        "A long prompt beside running streams",
        ["", "token to token, p50", "p99"],
        notes=f"Eight streams of 200 tokens on one transformers pod, one compute thread; prompts of {LONG_TOKENS} tokens come one after "
        f"the other, none of which was seen before. Median of {rounds} rounds in turn.",
    )
    p50s: dict[bool, list[float]] = {False: [], True: []}
    p99s: dict[bool, list[float]] = {False: [], True: []}
    with running_pods(1, **_ENGINE) as pods:
        for number in range(rounds + 1):
            for is_disturbed in (False, True):
                reader = asyncio.create_task(_prompts_for_ever(pods.url, number)) if is_disturbed else None
                gaps = sorted(gap for one in await asyncio.gather(*(_gaps(pods.url, 200) for _ in range(8))) for gap in one)
                if reader:
                    reader.cancel()
                    await asyncio.gather(reader, return_exceptions=True)
                if number:  # the first is the warm-up
                    p50s[is_disturbed].append(percentile(gaps, 0.5))
                    p99s[is_disturbed].append(percentile(gaps, 0.99))
    for is_disturbed, name in ((False, "alone"), (True, "while long prompts are read")):
        ratio = median([with_ / without for with_, without in zip(p99s[True], p99s[False], strict=True)])
        shown = f" ({verdict(ratio, GAP_AIM, at_most=True)})" if is_disturbed else ""
        section.rows.append([name, f"{median(p50s[is_disturbed]) * 1000:.1f} ms", f"{median(p99s[is_disturbed]) * 1000:.1f} ms{shown}"])
    return section


async def _prompts_for_ever(url: str, seed: int) -> None:
    """Long prompts, one after the other, each new to the engine."""
    async with aiohttp.ClientSession() as session:
        for number in range(1_000_000):
            ids = [100 + (seed * 7919 + number * 104_729 + index * 31) % 3000 for index in range(LONG_TOKENS)]
            body = msgspec.json.encode({"prompt": ids, "max_tokens": 1})
            async with session.post(url + "/v1/completions", data=body, headers={"content-type": "application/json"}) as response:
                await response.read()
                if response.status != 200:
                    raise RuntimeError(f"a long prompt was answered {response.status}")


def _row_cache(model: Any, lengths: list[int], steps: int) -> tuple[float, int]:
    """Seconds a step, and bytes, of the pod's cache: rows written in place, without padding."""
    forward = Forward(model, len(lengths), 4096)
    forward.check()
    held = list(lengths)
    for row, length in enumerate(lengths):
        forward(row, [[5] * length], [0])
    start = time.perf_counter()
    for _ in range(steps):
        for first, last in alike(held):  # as the pod does
            forward(first, [[7]] * (last - first), held[first:last])
        held = [length + 1 for length in held]
    seconds = (time.perf_counter() - start) / steps
    return seconds, forward.cache.num_rows * forward.cache.num_columns * forward.cache.bytes_per_token


def _left_padded(model: Any, lengths: list[int], steps: int) -> tuple[float, int]:
    """The same of transformers' DynamicCache with the prompts padded on the left, as `generate` does it."""
    longest = max(lengths)
    ids = torch.tensor([[0] * (longest - length) + [5] * length for length in lengths])
    mask = torch.tensor([[0] * (longest - length) + [1] * length for length in lengths])
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), past_key_values=cache, logits_to_keep=1)
    start = time.perf_counter()
    for _ in range(steps):
        mask = torch.cat([mask, torch.ones(len(lengths), 1, dtype=mask.dtype)], dim=1)
        positions = mask.sum(-1, keepdim=True) - 1
        ids = torch.full((len(lengths), 1), 7)
        model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1)
    seconds = (time.perf_counter() - start) / steps
    return seconds, sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def caches(rounds: int = 5, steps: int = 64) -> Section:
    """A step of 32 rows whose prompts are not alike, with either cache."""
    section = Section(
        "Rows in place beside left padding",
        ["prompts", "rows in place, a step", "left padding, a step", "left padding ÷ rows", "memory, rows", "memory, left padding"],
        notes=f"32 rows of the demo model in float32, one thread, mean of {steps} steps, median of {rounds} rounds in turn. Left padding "
        "cannot let a request join without padding all others anew, which is not counted here.",
    )
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(ROOT / "models" / "demo", dtype=torch.float32).eval()
    chance = random.Random(1)
    mixes = {
        "all 40 tokens": [40] * 32,
        "10 to 80 tokens": [chance.randint(10, 80) for _ in range(32)],
        "31 of 40, one of 1500": [40] * 31 + [1500],
    }
    with torch.inference_mode():
        for name, lengths in mixes.items():
            found = [(_row_cache(model, lengths, steps), _left_padded(model, lengths, steps)) for _ in range(rounds)]
            ratio = median([padded[0] / rows[0] for rows, padded in found])
            milliseconds = [median([one[way][0] for one in found]) * 1000 for way in (0, 1)]
            sizes = [f"{found[-1][way][1] / 2**20:.0f} MiB" for way in (0, 1)]
            section.rows.append([name, *[f"{value:.1f} ms" for value in milliseconds], f"{ratio:.2f}×", *sizes])
    return section


async def measure() -> list[Section]:
    """All of it."""
    return [await strategies(), await long_prompts(), caches()]
