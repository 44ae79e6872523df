"""The batch step by step, without thread or event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import LlamaForCausalLM

from services.engine.backends.transformers.batch import Batch
from services.engine.backends.transformers.forward import Forward
from services.engine.backends.transformers.sequence import Sequence
from services.engine.generation import BackendError, GenerationRequest, SamplingParams

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
    finish(batch)
    assert [one.num_reused for one in (first, *others)] == [0, 192, 192, 192]
    assert [one.tokens for one in (first, *others)] == [one.tokens for one in alone]
    again = join(batch, beginning + ends[2])
    finish(batch)
    assert again.num_reused == 256
    assert again.tokens == alone[2].tokens


def test_what_is_kept_of_prompts_is_bounded(model: Any) -> None:
    """The longest unused is forgotten; a poisoned prompt is never kept."""
    batch = Batch(Forward(model, 8, CONTEXT), max_prefix_bytes=32 * 512 * 4)  # four blocks of 32 tokens with 512 bytes each

    def num_reused(start: int) -> int:
        one = join(batch, [start] * 70, max_tokens=1)
        while batch.rows:
            batch.step()
        return one.num_reused

    assert [num_reused(start) for start in (20, 60, 100, 100, 60, 20)] == [0, 0, 0, 64, 64, 0]
    assert [num_reused(POISON) for _ in range(2)] == [0, 0]


def test_a_new_prompt_beside_one_that_is_nearly_known_stays_within_the_context(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read one after the other where together they would be padded beyond it, and give what they give alone."""
    beginning, other = [20 + index % 60 for index in range(1000)], [100 + index % 70 for index in range(900)]
    alone = []
    for prompt in (beginning, other):
        batch = Batch(Forward(model, 8, CONTEXT))
        alone.append(join(batch, prompt, max_tokens=8))
        finish(batch)
    batch = Batch(Forward(model, 8, CONTEXT), max_prefix_bytes=1 << 24)
    join(batch, beginning, max_tokens=1)
    finish(batch)
    compute, places = model.forward, []

    def seen(*arguments: Any, **named: Any) -> Any:
        places.append(int(named["position_ids"].max()))
        return compute(*arguments, **named)

    monkeypatch.setattr(model, "forward", seen)
    together = [join(batch, prompt, max_tokens=8) for prompt in (beginning, other)]
    finish(batch)
    assert max(places) < CONTEXT
    assert together[0].num_reused == 992
    assert [one.tokens for one in together] == [one.tokens for one in alone]


def test_nobody_overtakes_a_prompt_that_is_being_read(model: Any) -> None:
    """While answers end and others join in every step, it is read to its end, and those that came after it are read in their order."""
    batch = Batch(Forward(model, 128, CONTEXT))
    for number in range(40):
        join(batch, [9, 8, 7], max_tokens=number + 2)
    batch.step()
    arrived, begun = [join(batch, [11] * 300)], dict[int, int]()
    for number in range(40):
        begun |= {id(one.sequence): number for one in batch.step() if one.sequence.num_new == 1}
        arrived.append(join(batch, [number, 5], max_tokens=2))
    steps = [begun[id(one)] for one in arrived if id(one) in begun]
    assert len(steps) > 1
    assert all(id(one) in begun for one in arrived[: len(steps)])
    assert steps == sorted(steps)


def test_all_rows_of_a_step_that_breaks_twice_are_told(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a prompt is read, and then for the others: nobody waits for ever."""
    batch = Batch(Forward(model, 8, CONTEXT))
    running = join(batch, [9, 8, 7])
    batch.step()
    reading = join(batch, [11] * 900)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(model, "forward", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        batch.step()
    assert {id(one) for one in batch.unanswered} == {id(running), id(reading)}
    told = batch.fail(BackendError("it broke"))
    assert {id(one.sequence) for one in told if one.error} == {id(running), id(reading)}
    assert batch.unanswered == []
