"""How the next token of each row is drawn: one vectorised function whose randomness depends on (seed, position) alone.

So a seeded answer is the same alone, in any batch, on any pod, and when it is taken up in its middle. The filters are those of
transformers, in its order (temperature, top-k, top-p, min-p). The draw is an inverse CDF with one uniform number per row: its cost
hardly grows with the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from services.engine.ranking import argmax, kth_largest, nucleus_floor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from services.engine.generation import SamplingParams

_SEED_MASK = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Below it nothing but the best token has weight, and 0 is what float32 makes of still less.
_MIN_TEMPERATURE = 1e-6
# The draw first finds the block, then the token in it: a running sum over the whole vocabulary would cost more than all the rest.
_BLOCK = 64


class BadLogits(ValueError):
    """Rows without a drawable token (NaN, infinite, or all masked); `rows` are their indices."""

    def __init__(self, rows: list[int]) -> None:
        """`rows`: indices into the logits."""
        super().__init__(f"the model gave logits that are not finite in rows {rows}")
        self.rows = rows


@dataclass(frozen=True, slots=True)
class RowParams:
    """Sampling parameters of a batch, a tensor [rows] each; the lists name the rows that use a filter, most often none.

    A greedy row (temperature 0) uses no filter, as none can remove the best token.
    """

    is_greedy: Tensor
    temperature: Tensor
    top_k: list[int]
    top_p: list[float]
    min_p: Tensor
    top_k_rows: list[int]
    top_p_rows: list[int]
    min_p_rows: list[int]

    @classmethod
    def of(cls, rows: Sequence[SamplingParams], device: torch.device | str = "cpu") -> RowParams:
        """Gathers the rows' parameters."""
        drawn = [(index, row) for index, row in enumerate(rows) if row.temperature > 0]
        return cls(
            is_greedy=torch.tensor([row.temperature == 0 for row in rows], device=device),
            temperature=torch.tensor([_temperature(row) for row in rows], dtype=torch.float32, device=device),
            top_k=[row.top_k for row in rows],
            top_p=[row.top_p for row in rows],
            min_p=torch.tensor([row.min_p if row.temperature else 0.0 for row in rows], dtype=torch.float32, device=device),
            top_k_rows=[index for index, row in drawn if row.top_k > 0],
            top_p_rows=[index for index, row in drawn if row.top_p < 1],
            min_p_rows=[index for index, row in drawn if row.min_p > 0],
        )


def _temperature(row: SamplingParams) -> float:
    return max(row.temperature, _MIN_TEMPERATURE) if row.temperature else 1.0


def sample(logits: Tensor, params: RowParams, seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.uint64]) -> Tensor:
    """Draws one token per row.

    `logits` [rows, vocabulary]; `seeds` and `positions` [rows], a position being the token's index in the answer. Returns [rows] int64 on
    the logits' device. Raises `BadLogits`.
    """
    logits = logits.float()
    highest = logits.amax(-1, keepdim=True)
    is_finite = highest.isfinite()
    if not bool(is_finite.all()):
        raise BadLogits((~is_finite).squeeze(1).nonzero().squeeze(1).tolist())
    if bool(params.is_greedy.all()):
        return argmax(logits)
    uniforms = torch.from_numpy(uniform(seeds, positions)).to(logits.device)
    drawn = _draw(_weights(logits, highest, params), uniforms)
    if not bool(params.is_greedy.any()):
        return drawn
    return torch.where(params.is_greedy, argmax(logits), drawn)


def weights_of(logits: Tensor, params: RowParams) -> Tensor:
    """The distribution that `sample` draws from, not normalised: [rows, vocabulary] float32, 0 where a filter removed the token."""
    logits = logits.float()
    return _weights(logits, logits.amax(-1, keepdim=True), params)


def uniform(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per row, a pure function of seed and position (splitmix64 of one after the other)."""
    hashed = _mix(_mix(seeds + _GOLDEN) + (positions + np.uint64(1)) * _GOLDEN)
    return np.asarray((hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def seed_array(seeds: Sequence[int]) -> npt.NDArray[np.uint64]:
    """Seeds as `sample` takes them: whole numbers of any size and sign, modulo 2**64."""
    return np.array([seed & _SEED_MASK for seed in seeds], dtype=np.uint64)


def _weights(logits: Tensor, highest: Tensor, params: RowParams) -> Tensor:
    """Softmax without its sum. The best token has weight 1, so that no temperature, however small, overflows."""
    weights = (logits - highest).div_(params.temperature[:, None]).exp_()
    if params.top_k_rows:
        _keep_top_k(weights, params)
    if params.top_p_rows:
        _keep_top_p(weights, params)
    if params.min_p_rows:
        weights.masked_fill_(weights < params.min_p[:, None], 0)
    return weights


def _keep_top_k(weights: Tensor, params: RowParams) -> None:
    """Tokens as likely as the k-th stay too, as in transformers."""
    part = weights[params.top_k_rows]
    floor = kth_largest(part, [min(params.top_k[row], part.shape[-1]) for row in params.top_k_rows])
    weights[params.top_k_rows] = part.masked_fill_(part < floor, 0)


def _keep_top_p(weights: Tensor, params: RowParams) -> None:
    """Tokens as likely as the last one of the nucleus stay too, so the result does not depend on the order of a sort."""
    part = weights[params.top_p_rows]
    floor = nucleus_floor(part, [params.top_p[row] for row in params.top_p_rows])
    weights[params.top_p_rows] = part.masked_fill_(part < floor, 0)


def _draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The first token whose cumulative weight is above the row's share."""
    num_rows, vocabulary = weights.shape
    if vocabulary % _BLOCK:
        weights = torch.nn.functional.pad(weights, (0, -vocabulary % _BLOCK))
    blocks = weights.view(num_rows, -1, _BLOCK)
    until = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    share = uniforms[:, None] * until[:, -1:]
    block = _first_above(until, share)
    before = torch.where(block > 0, until.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks[torch.arange(num_rows, device=weights.device), block.squeeze(1)]
    token = _first_above(inside.cumsum(-1, dtype=torch.float64), share - before)
    return (block * _BLOCK + token).squeeze(1)


def _first_above(cumulative: Tensor, share: Tensor) -> Tensor:
    """The first index whose cumulative weight is above `share` [rows, 1]; rounding never leads past the last token of weight."""
    total = cumulative[:, -1:]
    return torch.searchsorted(cumulative, share.minimum(torch.nextafter(total, torch.zeros_like(total))), right=True)


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of splitmix64; uint64 arithmetic wraps."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
