"""ENGINE=vllm for real, through Envoy: what its users would notice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import openai
import psutil
import pytest
import pytest_asyncio

from tests.contract.asking import CHAT, metric, until_metric
from tests.running import RunningPods, running_pods, skip_without_vllm, until
from tests.stack.harness import RunningEdge, running_edge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = [pytest.mark.stack, pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]
SLOTS = 32
QUESTION = [{"role": "user", "content": "Tell me about distributed systems."}]


@pytest.fixture(scope="module")
def pods() -> Iterator[RunningPods]:
    """One pod as vLLM starts it by itself, compiled, with a cache of four whole contexts."""
    skip_without_vllm()
    with running_pods(1, engine="vllm", dtype="float32", max_concurrent_requests=SLOTS, kv_cache_bytes=256 << 20) as pods:
        yield pods


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def edge(pods: RunningPods) -> AsyncIterator[RunningEdge]:
    """Envoy before it."""
    async with running_edge(pod_source=f"file:{pods.state_dir / 'pods.json'}", max_concurrent_requests=SLOTS) as edge:
        await edge.until_healthy("engine-1")
        yield edge


async def ask(edge: RunningEdge, **more: Any) -> dict[str, Any]:
    """A chat answer."""
    body = {"messages": QUESTION, "max_tokens": 48, "ignore_eos": True} | more
    async with edge.session.post(edge.url + CHAT, json=body) as response:
        answer: dict[str, Any] = await response.json()
        assert response.status == 200, answer
        return answer | {"seed": response.headers.get("x-convoy-seed")}


def text_of(answer: dict[str, Any]) -> str:
    """What it says."""
    text: str = answer["choices"][0]["message"]["content"]
    return text


def pid_of(pods: RunningPods) -> int:
    """The pod's process id; 0 between two of them."""
    return next((entry["pid"] for entry in pods.entries), 0)


def until_replaced(pods: RunningPods, old: int) -> None:
    """Waits until another process is the pod."""
    until(lambda: pid_of(pods) not in {0, old}, pods.log)


def engine_core(pods: RunningPods) -> psutil.Process:
    """The pod's other process."""
    return next(child for child in psutil.Process(pid_of(pods)).children() if "EngineCore" in " ".join(child.cmdline()))


async def test_the_official_package_gets_sense(edge: RunningEdge) -> None:
    """The README's questions, whole and streamed."""
    async with openai.AsyncOpenAI(base_url=edge.url + "/v1", api_key="none", max_retries=0) as client:
        whole = await client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, max_tokens=100)  # type: ignore[arg-type]
        assert "distributed system" in str(whole.choices[0].message.content)
        asked = [{"role": "user", "content": "Explain Docker in simple terms"}]
        stream = await client.chat.completions.create(model="demo", messages=asked, temperature=0, max_tokens=100, stream=True)  # type: ignore[arg-type]
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])  # type: ignore[union-attr]
    assert "container" in text
    async with edge.session.post(edge.url + "/chat", json={"message": "What is FastAPI?", "temperature": 0}) as response:
        assert "Python" in await response.text()


async def test_a_seeded_answer_does_not_depend_on_its_batch(edge: RunningEdge) -> None:
    """Nor does one that got its seed from us: the header tells it."""
    alone = await ask(edge, seed=5)
    crowd = asyncio.gather(*(ask(edge, temperature=0.9, max_tokens=64) for _ in range(SLOTS - 1)))
    assert text_of(await ask(edge, seed=5)) == text_of(alone)
    unseeded = (await crowd)[0]
    assert text_of(await ask(edge, seed=int(unseeded["seed"]), temperature=0.9, max_tokens=64)) == text_of(unseeded)


async def test_a_known_prefix_is_not_read_again(edge: RunningEdge) -> None:
    """What usage says of the second of two long prompts that begin alike."""
    beginning = "A queue takes what comes and gives it on in the same order. " * 40
    first, second = [await ask(edge, messages=[{"role": "user", "content": beginning + end}]) for end in ("First?", "And second?")]
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert 256 <= cached <= second["usage"]["prompt_tokens"]


async def test_who_leaves_takes_its_cache_along(edge: RunningEdge, pods: RunningPods) -> None:
    """Slots and KV cache are free again, after one client and after a thousand."""
    body = {"messages": QUESTION, "stream": True, "ignore_eos": True, "max_tokens": 2000}

    async def leave() -> None:
        async with edge.session.post(edge.url + CHAT, json=body) as response:
            assert response.status == 200
            await response.content.readany()

    await leave()
    start = time.monotonic()
    await until_metric(edge.session, pods.url, "llm_slots_in_use", 0)
    assert time.monotonic() - start < 1.5  # it is promised within 0.5 s
    for _ in range(50):
        await asyncio.gather(*(leave() for _ in range(20)))
    await until_metric(edge.session, pods.url, "llm_slots_in_use", 0)
    await ask(edge, max_tokens=1)  # the next step tells what the cache holds
    assert await metric(edge.session, pods.url, "llm_kv_cache_usage_ratio") < 0.01


POISON: list[dict[str, Any]] = [
    {"seed": 7, "messages": [{"role": "user", "content": "a long prompt, read in pieces. " * 300}]},
    {"temperature": 1e-6, "top_p": 1e-9, "min_p": 1.0, "top_k": 1},
    {"temperature": 5e-324},
    {"temperature": 2.0, "top_k": 1_000_000, "top_p": 1.0},
    {"seed": -(1 << 63)},
    {"seed": (1 << 63) - 1},
    {"messages": [{"role": "user", "content": ""}]},
    {"messages": []},
    {"stop": ["x" * 4096, "\u0000", "é" * 2000]},
    {"max_tokens": 4000},
    {"max_tokens": 10**9},
    {"messages": [{"role": "user", "content": "word " * 5000}]},
    {"messages": [{"role": "user", "content": "\ud83d\ude00\u200b\ufffd" * 200}]},
    {"min_tokens": 600, "max_tokens": 601},
    {"logit_bias": {"5": 1e308, "6": -1e308}},
]


async def test_no_request_ends_the_pod(edge: RunningEdge, pods: RunningPods) -> None:
    """Each is answered, or refused with an error of the client's; all together, too, and the same process goes on."""
    before = pid_of(pods), engine_core(pods).pid

    async def send(more: dict[str, Any]) -> int:
        body = {"messages": QUESTION, "max_tokens": 16} | more
        async with edge.session.post(edge.url + CHAT, json=body) as response:
            await response.read()
            return response.status

    assert {await send(more) for more in POISON} <= {200, 400}
    assert set(await asyncio.gather(*(send(more) for more in POISON))) <= {200, 400}
    prompts: list[object] = [[0], [4095] * 10, [4096], [-1], "", [], "x" * 100_000]
    for prompt in prompts:
        async with edge.session.post(edge.url + "/v1/completions", json={"prompt": prompt, "max_tokens": 4, "seed": 1}) as response:
            assert response.status in {200, 400}, await response.text()
    await ask(edge)
    assert (pid_of(pods), engine_core(pods).pid) == before


async def test_requests_that_do_not_say_how_long_run_together(edge: RunningEdge, pods: RunningPods) -> None:
    """Each may fill the context, which hardly one does: three times as many run as contexts fit into the cache."""
    body = {"messages": QUESTION, "stream": True}
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(12):
            response = await stack.enter_async_context(edge.session.post(edge.url + CHAT, json=body | {"ignore_eos": True}))
            await response.content.readany()
        assert await metric(edge.session, pods.url, "llm_slots_in_use") == 12
    await until_metric(edge.session, pods.url, "llm_slots_in_use", 0)


async def test_an_engine_core_that_dies_takes_its_pod_along(edge: RunningEdge, pods: RunningPods) -> None:
    """And a pod that is killed takes its engine core along; each time a new one serves in seconds."""
    old = pid_of(pods)
    engine_core(pods).send_signal(signal.SIGKILL)
    until_replaced(pods, old)
    assert "the engine died" in pods.entries[0]["last_exit"]
    pods.until_ready(1)
    core, old = engine_core(pods), pid_of(pods)
    os.kill(old, signal.SIGKILL)
    until(lambda: not core.is_running() or core.status() == psutil.STATUS_ZOMBIE, lambda: "the engine core outlives its pod")
    until_replaced(pods, old)
    pods.until_ready(1)
    await edge.until_healthy("engine-1")
    assert text_of(await ask(edge))


async def test_draining_lets_an_answer_finish(edge: RunningEdge, pods: RunningPods) -> None:
    """SIGTERM to all of the pod's process group: the engine core is not told, and the stream comes whole."""
    body = {"messages": QUESTION, "stream": True, "ignore_eos": True, "max_tokens": 600}
    async with aiohttp.ClientSession() as session, session.post(pods.url + CHAT, json=body) as response:
        await response.content.readany()
        pid = pid_of(pods)
        for process in (psutil.Process(pid), *psutil.Process(pid).children()):
            if os.getpgid(process.pid) == os.getpgid(pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGTERM)
        assert b"data: [DONE]" in await response.read()
    until_replaced(pods, pid)
    pods.until_ready(1)
    await edge.until_healthy("engine-1")
