"""The sampler, against transformers' own processors as the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from services.engine import ranking
from services.engine.generation import SamplingParams
from services.engine.sampling import BadLogits, RowParams, sample, seed_array, uniform, weights_of

DRAWS = 20_000
FILTERS = [
    SamplingParams(seed=1),
    SamplingParams(seed=2, temperature=0.7),
    SamplingParams(seed=3, temperature=1.8),
    SamplingParams(seed=4, top_k=5),
    SamplingParams(seed=5, top_p=0.8),
    SamplingParams(seed=6, min_p=0.1),
    SamplingParams(seed=7, temperature=1.3, top_k=20, top_p=0.9, min_p=0.02),
]


def oracle(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The scores of one row after transformers' processors, in its order."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    scores: torch.Tensor = warpers(torch.zeros(1, 1, dtype=torch.long), logits[None])
    return scores[0]


def draw(logits: torch.Tensor, rows: list[SamplingParams], positions: list[int]) -> list[int]:
    """`sample` with plain lists."""
    tokens = sample(logits, RowParams.of(rows), seed_array([row.seed for row in rows]), np.array(positions, dtype=np.uint64))
    return [int(token) for token in tokens]


@pytest.mark.parametrize("vocabulary", [7, 1000, 4096])
def test_filters_keep_the_tokens_that_transformers_keeps(vocabulary: int) -> None:
    """Whatever mix of top-k, top-p and min-p a client asks for, exactly the tokens stay that transformers would keep."""
    generator = torch.Generator().manual_seed(vocabulary)
    rows = [
        SamplingParams(seed=0, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        for temperature in (0.3, 1.0, 2.5)
        for top_k in (0, 1, 40, 5000)
        for top_p in (0.05, 0.5, 0.95, 1.0)
        for min_p in (0.0, 0.02, 0.5)
    ]
    logits = torch.randn(len(rows), vocabulary, generator=generator) * 3
    weights = weights_of(logits, RowParams.of(rows))
    for row, params in enumerate(rows):
        expected = oracle(logits[row], params)
        assert torch.equal(weights[row] > 0, expected.isfinite()), params
        assert torch.allclose(weights[row] / weights[row].sum(), expected.softmax(-1), atol=1e-6), params


@pytest.mark.parametrize("params", FILTERS)
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    """Over 20 000 positions the drawn tokens are distributed as the filtered softmax says (chi-square)."""
    logits = torch.randn(200, generator=torch.Generator().manual_seed(params.seed)) * 2
    expected = oracle(logits, params).softmax(-1).double().numpy() * DRAWS
    tokens = draw(logits.expand(DRAWS, -1), [params] * DRAWS, list(range(DRAWS)))
    observed = np.bincount(tokens, minlength=200)
    assert observed[expected == 0].sum() == 0
    usual = expected >= 5
    groups: list[np.ndarray] = [np.append(values[usual], values[~usual].sum()) for values in (observed, expected)]
    filled = groups[1] > 0
    assert chisquare(groups[0][filled], groups[1][filled] * groups[0].sum() / groups[1].sum()).pvalue > 1e-3


def test_seeds_are_as_independent_as_positions() -> None:
    """Neighbouring seeds at one position give uniform, uncorrelated numbers, as neighbouring positions of one seed do."""
    grid = uniform(np.arange(300, dtype=np.uint64)[:, None], np.arange(300, dtype=np.uint64)[None, :])
    assert grid.min() >= 0
    assert grid.max() < 1
    assert len(np.unique(grid)) == grid.size
    assert chisquare(np.histogram(grid, bins=100, range=(0, 1))[0]).pvalue > 1e-3
    for neighbour in (grid[1:] * 1.0, grid[:, 1:] * 1.0):
        base = grid[: neighbour.shape[0], : neighbour.shape[1]]
        assert abs(np.corrcoef(base.ravel(), neighbour.ravel())[0, 1]) < 0.02


def test_temperature_zero_takes_the_best_token() -> None:
    """A greedy request gets the arg-max, the first of equals, whatever filters it also names."""
    logits = torch.randn(4, 500)
    logits[3, [20, 400]] = 100.0
    rows = [SamplingParams(seed=9, temperature=0, top_k=3, top_p=0.1, min_p=0.9)] * 4
    assert draw(logits, rows, [0, 1, 2, 3]) == logits.argmax(-1).tolist()
    assert draw(logits, rows, [0, 1, 2, 3])[3] == 20


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_row_draws_the_same_alone_and_in_any_batch(data: st.DataObject) -> None:
    """A seeded answer does not depend on who shares the batch, nor on the place in it."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    pool = [*FILTERS, SamplingParams(seed=8, temperature=0)]
    rows = data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=12))
    positions = data.draw(st.lists(st.integers(0, 10_000), min_size=len(rows), max_size=len(rows)))
    logits = torch.randn(len(rows), 333, generator=generator) * 2
    together = draw(logits, rows, positions)
    alone = [draw(logits[i : i + 1], [row], [positions[i]])[0] for i, row in enumerate(rows)]
    assert together == alone
    assert draw(logits.flip(0), rows[::-1], positions[::-1]) == together[::-1]


def test_a_tiny_temperature_is_nearly_greedy() -> None:
    """A temperature of one millionth neither overflows nor fails: it gives the best token."""
    logits = torch.randn(3, 100) * 50
    for temperature in (1e-6, 1e-30, 1e-46, 5e-324):  # the last two are 0 as float32
        assert draw(logits, [SamplingParams(seed=1, temperature=temperature)] * 3, [0, 1, 2]) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_refused_by_row(poison: float, temperature: float) -> None:
    """A poisoned row is named, so that only its own request fails."""
    logits = torch.randn(4, 50)
    logits[2] = poison
    with pytest.raises(BadLogits, match=r"not finite in rows \[2\]") as caught:
        draw(logits, [SamplingParams(seed=1, temperature=temperature)] * 4, [0, 0, 0, 0])
    assert caught.value.rows == [2]


def test_a_masked_token_is_never_drawn() -> None:
    """Tokens at minus infinity (stop tokens before `min_tokens`) stay out of every draw."""
    logits = torch.zeros(2000, 70)
    logits[:, 1::2] = float("-inf")
    tokens = draw(logits, [SamplingParams(seed=3)] * 2000, list(range(2000)))
    assert set(tokens) == set(range(0, 70, 2))


@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
def test_processor_and_accelerator_paths_agree(spread: float) -> None:
    """The fast way on a CPU gives the values of the general one, for flat and for peaked distributions."""
    logits = torch.randn(20, 5000, generator=torch.Generator().manual_seed(1)) * spread
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    shares = np.linspace(0.0, 0.999, 20).tolist()
    ranks = list(range(1, 5000, 250))
    assert torch.equal(ranking.nucleus_floor(weights, shares), ranking.nucleus_by_sort(weights, shares))
    assert torch.equal(ranking.kth_largest(weights, ranks), ranking.kth_by_sort(weights, ranks))


def test_huge_and_negative_seeds_are_seeds() -> None:
    """Any whole number is a seed: seeds of 64 bits and negative ones draw, and differ."""
    logits = torch.randn(1, 1000)
    seeds = [0, -1, 2**63, 2**64 + 5, -(2**70)]
    answers = {seed: tuple(draw(logits.expand(8, -1), [SamplingParams(seed=seed)] * 8, list(range(8)))) for seed in seeds}
    assert len(set(answers.values())) >= 4
