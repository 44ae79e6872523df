"""What a pod costs beside a bare aiohttp handler that sends the same bytes."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from bench.measuring import Section, closed_loop, interleaved, median, python_process, ratio, verdict
from tests.running import running_pods

AIM = 1.5
CHUNKS = 64
PER_SECOND = 500.0
PATH = "/v1/chat/completions"
QUESTION = "Tell me about distributed systems. " * 8


def body(*, stream: bool) -> dict[str, Any]:
    """A request of usual size."""
    return {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": CHUNKS, "seed": 1, "stream": stream, "ignore_eos": True}


async def measure(rounds: int = 5) -> list[Section]:
    """JSON with an instant engine, and a 64-chunk stream at 500 tokens a second."""
    section = Section(
        "A pod beside a bare aiohttp handler",
        ["request", "bare handler, CPU a request", "pod, CPU a request", "pod ÷ bare"],
        notes=f"Fake engine, 16 clients in a closed loop, median of {rounds} interleaved rounds. The bare handler sends the same bytes "
        "without looking at the request; the pod decodes, validates, admits, counts, logs and encodes.",
    )
    for stream, pace, requests in ((False, 1e9, 800), (True, PER_SECOND, 160)):
        with running_pods(1, fake_first_token_ms=0, fake_tokens_per_second=pace) as pods, tempfile.TemporaryDirectory() as folder:
            asked = body(stream=stream)
            payload = Path(folder) / "answer"
            async with aiohttp.ClientSession() as session, session.post(pods.url + PATH, json=asked) as response:
                payload.write_bytes(await response.read())
            with python_process("-m", "bench.bare", str(payload), str(CHUNKS * stream), str(pace), ready="serving ") as (
                bare_pid,
                bare_url,
            ):
                load = partial(closed_loop, body=asked, clients=16, requests=requests)
                results = await interleaved(
                    rounds,
                    bare=partial(load, bare_url + PATH, pids=[bare_pid]),
                    pod=partial(load, pods.url + PATH, pids=[pods.entries[0]["pid"]]),
                )
        bare, pod = ([result.cpu_us for result in results[name]] for name in ("bare", "pod"))
        name = f"stream of {CHUNKS} chunks" if stream else "JSON"
        section.rows.append([name, f"{median(bare):.0f} µs", f"{median(pod):.0f} µs", verdict(ratio(pod, bare), AIM, at_most=True)])
    return [section]
