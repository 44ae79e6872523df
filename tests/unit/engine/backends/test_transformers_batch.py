"""The batch step by step, without thread or event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import LlamaForCausalLM

from services.engine.backends.transformers.batch import Batch
from services.engine.backends.transformers.forward import Forward
from services.engine.backends.transformers.sequence import Sequence
from services.engine.generation import GenerationRequest, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTEXT = 1024
POISON = 262


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    """As on the engine's thread."""
    with torch.inference_mode():
        yield


@pytest.fixture
def model(model_folder: Path) -> Any:
    """The tiny model, with one token on which it computes NaN."""
    model = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    model.model.embed_tokens.weight.data[POISON] = float("nan")
    return model


def join(batch: Batch, prompt: list[int], max_tokens: int = 30) -> Sequence:
    """A greedy request joins."""
    sequence = Sequence(GenerationRequest("r", prompt, SamplingParams(seed=0, temperature=0), max_tokens), CONTEXT)
    batch.join(sequence)
    return sequence


def finish(batch: Batch) -> None:
    """Steps until no row is left."""
    while batch.rows:
        assert [one.error for one in batch.step() if one.error] == []


def test_a_long_prompt_does_not_stop_the_others(model: Any) -> None:
    """While a prompt of 900 tokens is read, in several steps, a running request gets its token in each of them."""
    batch = Batch(Forward(model, 8, CONTEXT))
    running = join(batch, [9, 8, 7], max_tokens=400)
    batch.step()
    long = join(batch, [11] * 900)
    num_steps = 0
    while not long.num_new:
        before = running.num_new
        batch.step()
        num_steps += 1
        assert running.num_new == before + 1
    assert 2 < num_steps < 100


def test_what_a_cancelled_poisoned_prompt_leaves_reaches_nobody(model: Any) -> None:
    """Values that are not finite and that nobody has seen yet are wiped, so the next user of the row gets its true answer."""
    batch = Batch(Forward(model, 8, CONTEXT))
    alone = join(batch, [50, 60, 70])
    finish(batch)
    mate = join(batch, list(range(20, 90)), max_tokens=60)
    batch.step()
    poisoned = join(batch, [POISON] * 900)
    batch.step()
    assert 0 < poisoned.num_cached < 899
    poisoned.is_cancelled = True
    follower = join(batch, [50, 60, 70])
    finish(batch)
    assert follower.tokens == alone.tokens
    assert mate.num_new == 60
    assert all(0 <= token < 263 for token in mate.tokens)


def test_what_a_poisoned_answer_leaves_reaches_nobody(model: Any) -> None:
    """The row of a request that failed on NaN serves the next one beside a longer mate."""
    batch = Batch(Forward(model, 8, CONTEXT))
    alone = join(batch, [50, 60, 70])
    finish(batch)
    join(batch, list(range(20, 90)), max_tokens=60)
    batch.step()
    poisoned = join(batch, [POISON] * 40)
    failed: list[Sequence] = []
    while not failed:  # its prompt may be read in several steps
        failed = [one.sequence for one in batch.step() if one.error]
    assert failed == [poisoned]
    follower = join(batch, [50, 60, 70])
    finish(batch)
    assert follower.tokens == alone.tokens


def test_rows_that_move_keep_their_answers(model: Any) -> None:
    """Rows of many lengths that join and leave in turn give what each gives alone, also where a prompt is still being read."""
    forward = Forward(model, 8, CONTEXT)
    prompts = [[20 + index] * length for index, length in enumerate((3, 400, 1, 33, 600, 7, 50, 2))]
    lengths = [4, 9, 14, 5, 6, 20, 3, 11]
    alone = []
    for prompt, length in zip(prompts, lengths, strict=True):
        batch = Batch(forward)
        alone.append(join(batch, prompt, length))
        finish(batch)
    batch = Batch(forward)
    together = []
    for prompt, length in zip(prompts, lengths, strict=True):
        together.append(join(batch, prompt, length))
        batch.step()
    finish(batch)
    assert [one.tokens for one in together] == [one.tokens for one in alone]


def test_a_known_beginning_is_not_read_again(model: Any) -> None:
    """Prompts that begin alike give the answers that they give alone, and read only what is new of them."""
    beginning = [20 + index % 60 for index in range(200)]
    ends = [[1, 2, 3], [4, 5], list(range(30, 100)), [7]]
    alone = []
    for end in ends:
        batch = Batch(Forward(model, 8, CONTEXT))
        alone.append(join(batch, beginning + end))
        finish(batch)
    batch = Batch(Forward(model, 8, CONTEXT), max_prefix_bytes=1 << 20)
    first = join(batch, beginning + ends[0])
    finish(batch)
    others = [join(batch, beginning + end) for end in ends[1:]]
    assert first.num_reused == 0
    assert [one.num_reused for one in others] == [192, 192, 192]
    finish(batch)
    assert [one.tokens for one in (first, *others)] == [one.tokens for one in alone]
    again = join(batch, beginning + ends[2])
    assert again.num_reused == 256
    finish(batch)
    assert again.tokens == alone[2].tokens


def test_what_is_kept_of_prompts_is_bounded(model: Any) -> None:
    """The longest unused is forgotten; a poisoned prompt is never kept."""
    batch = Batch(Forward(model, 8, CONTEXT), max_prefix_bytes=32 * 512 * 4)  # four blocks of 32 tokens with 512 bytes each
    for start in (20, 60, 100):
        join(batch, [start] * 70, max_tokens=1)
        finish(batch)
    assert [join(batch, [start] * 70, max_tokens=1).num_reused for start in (20, 60, 100)] == [0, 64, 64]
    finish(batch)
    join(batch, [POISON] * 70, max_tokens=1)
    batch.step()
    assert join(batch, [POISON] * 70, max_tokens=1).num_reused == 0
