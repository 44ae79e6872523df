"""ENGINE=vllm with models that break and options that are wrong; a pod each."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING

import aiohttp
import psutil
import pytest
from safetensors.torch import load_file, save_file

from tests.running import ROOT, running_pods, skip_without_vllm, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.stack, pytest.mark.model, pytest.mark.asyncio]
POISONED = 4000
START_SECONDS = 110


async def test_a_request_on_which_the_model_breaks_fails_alone(tmp_path: Path) -> None:
    """A token whose embedding is not a number: its request is told so, and the others go on beside it, also in the cache that it leaves."""
    skip_without_vllm()
    folder = shutil.copytree(ROOT / "models" / "demo", tmp_path / "demo")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()  # shared, it would poison every answer
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    weights["model.embed_tokens.weight"][POISONED] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with running_pods(1, engine="vllm", dtype="float32", model_name=folder, kv_cache_bytes=128 << 20, vllm_args="--enforce-eager") as pods:
        async with aiohttp.ClientSession() as session:

            async def complete(prompt: list[int]) -> int:
                body = {"prompt": prompt, "max_tokens": 20, "ignore_eos": True}
                async with session.post(pods.url + "/v1/completions", json=body) as response:
                    await response.read()
                    return response.status

            for _ in range(40):
                found = await asyncio.gather(*(complete([100 + number, 200]) for number in range(4)), complete([POISONED]))
                assert found == [200] * 4 + [500]
            assert await complete([300]) == 200


async def test_infinite_logits_are_no_answer(tmp_path: Path) -> None:
    """In a format in which vLLM's own count does not see them: the pod's first question to itself fails, and it never serves."""
    skip_without_vllm()
    folder = shutil.copytree(ROOT / "models" / "demo", tmp_path / "demo")
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    weights["model.norm.weight"][0] = 1e4
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["lm_head.weight"][:2] = 0
    weights["lm_head.weight"][0, 0], weights["lm_head.weight"][1, 0] = 3e38, -3e38
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with running_pods(0, engine="vllm", pods=1, dtype="bfloat16", model_name=folder, vllm_args="--enforce-eager") as pods:
        assert pods.process.wait(120) == 1
        error = json.loads((pods.state_dir / "pods.json").read_text())["error"]
    assert "the model gave logits that are not finite" in error


async def test_what_vllm_does_not_know_is_named() -> None:
    """VLLM_ARGS: an option that is Convoy's ends the start with one line that names the setting."""
    skip_without_vllm()
    with running_pods(0, engine="vllm", pods=1, vllm_args="--max-num-seqs 3") as pods:
        assert pods.process.wait(120) == 1
        error = json.loads((pods.state_dir / "pods.json").read_text())["error"]
    assert error == "VLLM_ARGS: --max-num-seqs is Convoy's own: set MAX_CONCURRENT_REQUESTS"


async def test_an_engine_core_that_is_killed_while_it_loads_is_no_fault_of_the_model() -> None:
    """For its memory, say: the pod ends and a new one serves, where a model that cannot be loaded ends the start."""
    skip_without_vllm()
    with running_pods(0, engine="vllm", pods=1, vllm_args="--enforce-eager") as pods:

        def core() -> psutil.Process | None:
            children = psutil.Process(pods.entries[0]["pid"]).children() if pods.entries else []
            return next((child for child in children if "EngineCore" in " ".join(child.cmdline())), None)

        until(lambda: core() is not None, lambda: "no engine core was started", START_SECONDS)
        found, old = core(), pods.entries[0]["pid"]
        assert found is not None
        found.kill()
        until(lambda: bool(pods.entries) and pods.entries[0]["pid"] != old, lambda: "the pod was not replaced", START_SECONDS)
        assert "was killed by signal 9 while it loaded" in pods.entries[0]["last_exit"]
        pods.until_ready(1, START_SECONDS)
