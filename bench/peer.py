"""The same loads against another server of the same model: `transformers serve` with continuous batching, which has no admission.

Its web server is not among our dependencies: it is installed beside them, into the state folder, when this is first run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import msgspec

from bench import mix
from bench.measuring import ROOT, Section, median, ratio, verdict
from bench.streams import DONE, loop
from services.ops.load.arrivals import poisson
from services.ops.load.client import run_load
from services.ops.load.kinds import CHAT, Kind
from services.ops.load.summary import percentile
from services.ops.ports import free_port
from tests.running import running_pods

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.ops.load.outcome import Outcome

PACKAGES = ("fastapi==0.165.0", "uvicorn==0.54.0")
ACCELERATE = "accelerate==1.15.0"
"""It would bring a torch of its own along, so it comes without what it depends on."""
FOLDER = ROOT / ".convoy" / "bench-peer"
FACTORS = (0.9, 2.0, 5.0)
DEADLINE, LEAD_SECONDS, SECONDS, START_SECONDS = 12.0, 10.0, 20.0, 120.0
TOKENS, SPEED_AIM = 64, 2.0
SLOTS = 16
"""As many clients as two pods have slots measure its capacity, and two more."""


def _model(folder: Path) -> Path:
    """The demo model, whose answers end at `max_tokens` only: this server knows no `ignore_eos`."""
    copy = Path(shutil.copytree(ROOT / "models" / "demo", folder / "demo"))
    for name in ("config.json", "generation_config.json"):
        fields = msgspec.json.decode((copy / name).read_bytes())
        (copy / name).write_bytes(msgspec.json.encode(fields | {"eos_token_id": None}))
    return copy


@contextlib.asynccontextmanager
async def served(threads: int = 0) -> AsyncIterator[tuple[str, str]]:
    """The server's address, and its model's name; `threads` 0 is all cores."""
    if not FOLDER.exists():
        install = [f"{ROOT}/.venv/bin/uv", "pip", "install", "--quiet", "--python", sys.executable, "--target", str(FOLDER)]
        for packages in (PACKAGES, ("--no-deps", ACCELERATE)):
            subprocess.run([*install, *packages], check=True)  # noqa: ASYNC221 - nothing else happens meanwhile
    with tempfile.TemporaryDirectory() as folder:
        model, port = _model(Path(folder)), free_port("127.0.0.1")
        url = f"http://127.0.0.1:{port}"
        serve = ["serve", str(model), "--continuous-batching", "--cb-num-blocks", "512", "--device", "cpu", "--host", "127.0.0.1"]
        command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", *serve, "--port", str(port)]
        environment = os.environ | {
            "PYTHONPATH": str(FOLDER),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(threads or os.cpu_count() or 1),
        }
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            await _until_ready(url, process)
            yield url, str(model)
        finally:
            with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
                process.kill()
            await process.wait()


async def _until_ready(url: str, process: asyncio.subprocess.Process) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + START_SECONDS
    async with aiohttp.ClientSession() as session:
        while loop.time() < end:
            if process.returncode is not None:
                raise RuntimeError(f"transformers serve ended with {process.returncode}")
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.2)
    raise RuntimeError(f"transformers serve was not ready after {START_SECONDS:g} s")


def _kinds(model: str) -> list[Kind]:
    """The mix of the other benches without what this server refuses."""
    kinds = []
    for kind in mix.mix(DEADLINE):
        bodies = [msgspec.json.decode(body) for body in kind.bodies[:2000]]
        asked = [{name: body[name] for name in ("messages", "max_tokens", "stream")} | {"model": model} for body in bodies]
        bytes_of = tuple(map(msgspec.json.encode, asked))
        kinds.append(Kind(name=kind.name, path=CHAT, bodies=bytes_of, is_stream=kind.is_stream, weight=kind.weight))
    return kinds


def _row(factor: float, outcomes: list[Outcome], length: dict[str, int], best: float) -> tuple[list[str], float]:
    """A load's line, and the tokens a second that came in time. A stream of this server has no [DONE]: it is whole if it has all tokens."""
    answered = [one for one in outcomes if one.status == 200]
    good = [one for one in answered if one.latency <= DEADLINE and LEAD_SECONDS <= one.ended < LEAD_SECONDS + SECONDS]
    tokens = sum(length[one.kind] for one in good) / SECONDS
    asked = [one for one in outcomes if one.stage == 1]
    late = sum(one.status == 200 and one.latency > DEADLINE for one in asked)
    failed = sum(one.status != 200 for one in asked)
    ttfts = sorted(one.ttft for one in asked if one.status == 200 and one.ttft is not None)
    ttft = f"{percentile(ttfts, 0.95):.2f} s" if ttfts else "nobody had one"
    cells = [f"{factor:g}×", f"{len(good) / SECONDS:.1f}/s", f"{tokens / (best or tokens):.2f}×", ttft, str(late), str(failed)]
    return cells, tokens


async def speed(clients: int = 32, rounds: int = 5) -> Section:
    """Tokens a second of streams in a closed loop, beside a transformers pod."""
    questions = [f"Please answer question number {number} about distributed systems." for number in range(clients)]
    asked = [{"messages": [{"role": "user", "content": question}], "max_tokens": TOKENS, "stream": True} for question in questions]
    speeds: dict[str, list[float]] = {"serve": [], "pod": []}
    settings = {"engine": "transformers", "num_threads": 1, "max_concurrent_requests": clients}
    async with served(threads=1) as (url, model):
        with running_pods(1, **settings) as pods:
            ways = {
                "serve": (url + CHAT, [msgspec.json.encode(body | {"model": model}) for body in asked], b'"finish_reason":"length"'),
                "pod": (pods.url + CHAT, [msgspec.json.encode(body | {"ignore_eos": True}) for body in asked], DONE),
            }
            for number in range(rounds + 1):
                for name, (address, bodies, end) in ways.items():
                    seen = await loop(address, bodies * 2, clients, end=end)
                    if number:  # the first is the warm-up
                        speeds[name].append(2 * clients * TOKENS / seen.seconds)
    section = Section(
        "The transformers pod beside transformers serve", ["streams", "transformers serve, tokens/s", "pod, tokens/s", "ratio"]
    )
    faster = verdict(ratio(speeds["pod"], speeds["serve"]), SPEED_AIM, at_most=False)
    section.rows.append([str(clients), f"{median(speeds['serve']):.0f}", f"{median(speeds['pod']):.0f}", faster])
    section.notes = (
        f"`transformers serve --continuous-batching --cb-num-blocks 512`, the demo model in the dtype that each chooses by itself, one "
        f"compute thread, {TOKENS} tokens an answer, the same client in a closed loop; median of {rounds} rounds in turn."
    )
    return section


async def measure() -> list[Section]:
    """Its capacity, and loads above it; its speed beside a pod's."""
    section = Section("Past saturation, another server", ["load", "goodput", "tokens in time, beside 0.9×", "TTFT p95", "late", "failed"])
    async with served() as (url, model):
        kinds = _kinds(model)
        await mix.capacity(url, SLOTS + 2, LEAD_SECONDS, kinds)
        rate = await mix.capacity(url, SLOTS + 2, SECONDS, kinds)
        best = 0.0
        for factor in FACTORS:
            stages = [poisson(rate * factor, LEAD_SECONDS), poisson(rate * factor, SECONDS)]
            outcomes = await run_load(url, kinds, stages, seed=int(factor * 10), time_limit=DEADLINE * 4)
            cells, tokens = _row(factor, outcomes, mix.lengths(kinds), best)
            best = best or tokens
            section.rows.append(cells)
    section.notes = (
        f"`transformers serve --continuous-batching` on all cores with the demo model, asked without Envoy; the same answers' lengths and "
        f"the same {DEADLINE:g} s as above, which it cannot be told. 1× is {rate:.1f} requests/s, its own capacity in a closed loop of "
        f"{SLOTS + 2} clients. Late: answered 200 after the client had ceased to care. Failed: neither answered nor refused within "
        f"{DEADLINE * 4:g} s."
    )
    return [section, await speed()]
