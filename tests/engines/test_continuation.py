"""An answer is the same wherever it was cut and whoever shares its batch, on both engines that draw tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.running import ROOT, skip_without_vllm

pytestmark = pytest.mark.model
PROMPTS = 6


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_an_answer_does_not_depend_on_where_it_was_cut_or_on_its_batch(engine: str) -> None:
    """Greedy and sampled, alone and mixed, token for token."""
    if engine == "vllm":
        skip_without_vllm()
    settings = {"ENGINE": engine, "DTYPE": "float32", "MAX_CONCURRENT_REQUESTS": "32"}
    command = [sys.executable, "-m", "tests.engines.continuation", str(PROMPTS)]
    ran = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    counts = json.loads(ran.stdout.splitlines()[-1])
    assert len(counts) == 14
    assert {what: count for what, count in counts.items() if count != [PROMPTS, PROMPTS]} == {}
