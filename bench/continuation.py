"""Whether an answer is the same wherever it was cut and whoever shares its batch: both engines, float32 and bfloat16."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import msgspec

from bench.measuring import ROOT, Section

PROMPTS = 100
ENGINES = ("transformers", "vllm")


async def counts(engine: str, dtype: str) -> dict[str, tuple[int, int]]:
    """How many of how many are equal, by what was done."""
    settings = {"ENGINE": engine, "DTYPE": dtype, "MAX_CONCURRENT_REQUESTS": "32"}
    command = [sys.executable, "-m", "tests.engines.continuation", str(PROMPTS)]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{engine} in {dtype} ended with {process.returncode}")
    return msgspec.json.decode(output.splitlines()[-1], type=dict[str, tuple[int, int]])


async def measure() -> list[Section]:
    """A row for everything that is done to an answer."""
    columns = [(engine, dtype) for dtype in ("float32", "bfloat16") for engine in ENGINES]
    section = Section("Answers that are cut and taken up again", ["", *[f"{engine}, {dtype}" for engine, dtype in columns]])
    found = [await counts(engine, dtype) for engine, dtype in columns]
    for what in found[0]:
        section.rows.append([what, *[f"{each[what][0] / each[what][1]:.0%}" for each in found]])
    section.notes = (
        f"Share of {PROMPTS} answers of up to 64 tokens that are token for token the one generated alone and uncut; greedy, and sampled at "
        "temperature 0.8 with top-k 50, top-p 0.95, min-p 0.02; batches of 32, greedy and sampled mixed. float32 has to be 100%. In "
        "bfloat16 a batch of another shape rounds otherwise, and a choice that is nearly a tie may fall the other way."
    )
    return [section]
