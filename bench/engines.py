"""A vLLM pod beside vLLM's own API server: same model, same arguments, same threads, same client, in turn. `make bench-engines`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from bench.measuring import ROOT, Section, cpu_seconds, median, ratio, verdict
from bench.streams import Streams, loop, repeated
from services.ops.load.summary import percentile
from services.ops.ports import free_port
from tests.running import running_pods

if TYPE_CHECKING:
    from collections.abc import Iterator

DEMO = ROOT / "models" / "demo"
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
TOKENS, THREADS, SLOTS = 64, 1, 128
CLIENTS = {1: 8, 8: 80, 128: 512}
"""How many requests they make between them in a round."""
ROUNDS, SETTLE_SECONDS = 5, 4.0
"""Between rounds: vLLM's worker on a processor spins for a while when it has nothing to do, which is the next one's time."""
SPEED_AIMS, TTFT_AIM, SAMPLING_AIM = {1: 1.0, 8: 1.0, 128: 1.5}, 0.6, 0.95
START_SECONDS = 240.0
QUESTIONS = ("Tell me about distributed systems.", "Explain Docker in simple terms", "What is FastAPI?", "What is a retry budget?")
DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server that speaks OpenAI's protocol, and what it calls the model."""

    url: str
    model: str
    front: int = 0
    """The process that speaks HTTP; its children generate."""

    def bodies(self, **more: float) -> list[bytes]:
        """The questions, as it wants them."""
        options = {"model": self.model, "temperature": 0.7, "max_tokens": TOKENS, "ignore_eos": True, "stream": True} | more
        return [msgspec.json.encode({"messages": [{"role": "user", "content": question}]} | options) for question in QUESTIONS]


@contextlib.contextmanager
def api_server(*more: str) -> Iterator[Contestant]:
    """`python -m vllm.entrypoints.openai.api_server` with what the pod tells vLLM, ready."""
    port = free_port("127.0.0.1")
    options = {"model": DEMO, "dtype": DTYPE, "max-num-seqs": SLOTS, "port": port, "host": "127.0.0.1", "kv-cache-memory-bytes": 1 << 30}
    flags = [f"--{name}={value}" for name, value in options.items()]
    flags += ["--enable-prefix-caching", "--disable-log-stats", "--disable-uvicorn-access-log", *more]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", *flags]
    with tempfile.NamedTemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd="/", env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _until_answers(f"http://127.0.0.1:{port}/health", process, Path(log.name))
            yield Contestant(f"http://127.0.0.1:{port}/v1/chat/completions", str(DEMO), process.pid)
        finally:
            # Its worker outlives it otherwise, and spins.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _until_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"vLLM's server ended with {process.returncode}: {log.read_text()[-2000:]}")
        try:
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - our own process
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        else:
            return
    raise RuntimeError(f"vLLM's server was not ready after {START_SECONDS:g} s: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def vllm_pod(**settings: object) -> Iterator[Contestant]:
    """One pod with ENGINE=vllm, asked without Envoy, ready."""
    wanted = {"engine": "vllm", "dtype": DTYPE, "num_threads": THREADS, "max_concurrent_requests": SLOTS, "kv_cache_bytes": 1 << 30}
    with running_pods(0, **(wanted | {"pods": 1} | settings)) as pods:
        pods.until_ready(1, START_SECONDS)
        yield Contestant(f"{pods.url}/v1/chat/completions", "demo", pods.entries[0]["pid"])


@dataclass(frozen=True, slots=True)
class Used:
    """Processor time of one round, seconds: by the process that speaks HTTP, by those that generate, and by the client."""

    front: float
    engine: float
    client: float

    @classmethod
    def now(cls, one: Contestant) -> Used:
        """Since the processes began."""
        children = [child.pid for child in psutil.Process(one.front).children(recursive=True)]
        return cls(cpu_seconds([one.front]), cpu_seconds(children), time.process_time())

    def since(self, before: Used) -> Used:
        """What was used between two looks."""
        return Used(self.front - before.front, self.engine - before.engine, self.client - before.client)


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one contestant."""

    streams: Streams
    used: Used


async def compared(contestants: dict[str, Contestant], clients: int, rounds: int) -> dict[str, list[Round]]:
    """What each saw, round by round, in turn."""
    seen: dict[str, list[Round]] = {name: [] for name in contestants}
    for one in contestants.values():  # warm-up
        await loop(one.url, repeated(one.bodies(), clients), clients)
    for _ in range(rounds):
        for name, one in contestants.items():
            await asyncio.sleep(SETTLE_SECONDS)
            before = Used.now(one)
            streams = await loop(one.url, repeated(one.bodies(), CLIENTS[clients]), clients)
            seen[name].append(Round(streams, Used.now(one).since(before)))
    return seen


def _speeds(rounds: list[Round], clients: int) -> list[float]:
    return [CLIENTS[clients] * TOKENS / one.streams.seconds for one in rounds]


def _p95s(rounds: list[Round]) -> list[float]:
    return [percentile(sorted(one.streams.ttfts), 0.95) for one in rounds]


async def in_vllms_python(module: str, *arguments: object) -> Any:
    """What a module of the bench prints as JSON in its last line."""
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    command = [str(PYTHON), "-m", module, *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{module} ended with {process.returncode}")
    return msgspec.json.decode(output.splitlines()[-1])


async def measure(rounds: int = ROUNDS) -> list[Section]:
    """1, 8 and 128 streams; what AsyncLLM can do alone; where the time goes."""
    head = ["streams", "vLLM's server, tokens/s", "pod, tokens/s", "pod ÷ server", "TTFT p95, server", "pod", "pod ÷ server"]
    section = Section("A vLLM pod beside vLLM's own server", [*head, "AsyncLLM alone, tokens/s"])
    floors: dict[str, float] = await in_vllms_python("bench.async_llm", 3)
    with api_server() as server, vllm_pod() as pod:
        for clients, aim in SPEED_AIMS.items():
            seen = await compared({"server": server, "pod": pod}, clients, rounds)
            section.rows.append([*_row(seen, clients, aim), f"{floors[str(clients)]:.0f}"])
    section.notes = (
        f"Demo model in {DTYPE}, {THREADS} compute thread each, {TOKENS} tokens an answer at temperature 0.7, {SLOTS} slots, compiled as "
        f"vLLM does by itself; streams in a closed loop by the same client on the same cores; median of {rounds} rounds in turn. The pod "
        "is asked without Envoy. AsyncLLM alone: vLLM's own engine object asked in its process, no HTTP, with text; the pod can be above, "
        "for it takes tokens from the engine core by a shorter way, and runs the worker in the engine core's process."
    )
    return [section, _where(seen), await _layers(), await _sampling(floors["draw"])]


def _where(seen: dict[str, list[Round]]) -> Section:
    """Processor time a token at the largest number of streams."""
    section = Section("Where a vLLM pod's time goes, by process", ["", "HTTP process", "engine processes", "client", "together"])
    num_tokens = CLIENTS[max(CLIENTS)] * TOKENS
    for name, rounds in seen.items():
        parts = [median([getattr(one.used, part) for one in rounds]) / num_tokens * 1e6 for part in ("front", "engine", "client")]
        section.rows.append([name, *[f"{value:.0f} µs" for value in (*parts, sum(parts))]])
    section.notes = f"Processor time a token with {max(CLIENTS)} streams, in the same rounds."
    return section


async def _layers() -> Section:
    found: dict[str, float] = await in_vllms_python("bench.layers")
    section = Section("Where a vLLM pod's time goes, by layer", ["layer of the HTTP process", "a token", "share"])
    for name, value in sorted(found.items(), key=lambda pair: -pair[1]):
        section.rows.append([name, f"{value:.1f} µs", f"{value / sum(found.values()):.0%}"])
    section.notes = "Own time by cProfile (`bench/layers.py`), which makes small functions look dearer than they are."
    return section


async def _sampling(of_vllms: float, clients: int = 32, rounds: int = 7) -> Section:
    """Tokens a second of sampled answers beside greedy ones, both engines, in turn."""
    section = Section("What sampling costs", ["engine", "sampled ÷ greedy", "with all filters ÷ greedy", "our draw ÷ the library's"])
    ways: list[dict[str, float]] = [
        {"temperature": 0},
        {"temperature": 0.7},
        {"temperature": 0.7, "top_k": 50, "top_p": 0.95, "min_p": 0.02},
    ]
    for engine, own in (("transformers", "generate: see there"), ("vllm", verdict(of_vllms, SAMPLING_AIM, at_most=False))):
        with vllm_pod(engine=engine) as pod:
            speeds: list[list[float]] = [[] for _ in ways]
            for number in range(rounds + 1):
                for found, way in zip(speeds, ways, strict=True):
                    seconds = (await loop(pod.url, repeated(pod.bodies(**way), 4 * clients), clients)).seconds
                    if number:  # the first is the warm-up
                        found.append(1 / seconds)
        faster = [f"{ratio(found, speeds[0]):.2f}×" for found in speeds[1:]]
        section.rows.append([engine, *faster, own])
    section.notes = f"{clients} streams of {TOKENS} tokens on one pod; median of {rounds} rounds in turn. The library's: AsyncLLM alone."
    return section


def _row(seen: dict[str, list[Round]], clients: int, aim: float) -> list[str]:
    speed = {name: _speeds(rounds, clients) for name, rounds in seen.items()}
    ttft = {name: _p95s(rounds) for name, rounds in seen.items()}
    faster, sooner = ratio(speed["pod"], speed["server"]), ratio(ttft["pod"], ttft["server"])
    return [
        str(clients),
        f"{median(speed['server']):.0f}",
        f"{median(speed['pod']):.0f}",
        verdict(faster, aim, at_most=False),
        f"{median(ttft['server']) * 1000:.0f} ms",
        f"{median(ttft['pod']) * 1000:.0f} ms",
        verdict(sooner, TTFT_AIM, at_most=True) if clients == max(CLIENTS) else f"{sooner:.2f}×",
    ]


if __name__ == "__main__":
    for one in asyncio.run(measure()):
        sys.stdout.write(one.markdown())
