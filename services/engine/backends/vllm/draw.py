"""The draw of the next token inside vLLM: its logits processor interface around the function that all engines share.

vLLM then sees one token that nothing can beat and takes it as a greedy choice. So its own random generators, whose state a cut answer
would lose and which end the engine core on a processor, have no part in an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality
from vllm.v1.worker import gpu_model_runner

from services.engine.backends.vllm.following import follow_parent
from services.engine.generation import SamplingParams
from services.engine.sampling import BadLogits, RowParams, sample, seed_array

if TYPE_CHECKING:
    import numpy.typing as npt

KEY = "convoy"
"""In vLLM's `extra_args`: seed, temperature, top_k, top_p, min_p, and how many tokens of the answer are in the prompt."""

NAME = f"{__name__}:Draw"


class _Row:
    """One request: how it samples, and its tokens so far, which vLLM appends to."""

    __slots__ = ("base", "is_broken", "output", "sampling")

    def __init__(self, sampling: SamplingParams, base: int, output: list[int]) -> None:
        self.sampling, self.base, self.output, self.is_broken = sampling, base, output, False

    @classmethod
    def of(cls, params: Any, output: list[int]) -> _Row:
        """A request's, as `extra_args` tell."""
        *sampling, base = params.extra_args[KEY]
        return cls(SamplingParams(*sampling), base, output)


class Draw(LogitsProcessor):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """Decides every token of every request; vLLM makes one for its engine core."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002 - vLLM's signature
        """Also ties the life of the engine core, in which it is made, to the pod's."""
        follow_parent()
        gpu_model_runner.count_nans_per_row = self._broken_rows
        self._layers: dict[str, Any] = vllm_config.compilation_config.static_forward_context
        self._rows: dict[int, _Row] = {}
        self._batch: tuple[list[_Row], RowParams, npt.NDArray[np.uint64]] | None = None

    def is_argmax_invariant(self) -> bool:
        """It is what decides."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follows who is in which row: removed, added, moved, in this order."""
        if batch_update is None:
            return
        self._batch = None
        rows = self._rows
        for index in batch_update.removed:
            rows.pop(index, None)
        for index, params, _, output in batch_update.added:
            rows.pop(index, None)
            if params.extra_args and KEY in params.extra_args:
                rows[index] = _Row.of(params, output)
        for first, second, direction in batch_update.moved:
            moved, other = rows.pop(first, None), rows.pop(second, None)
            if moved is not None:
                rows[second] = moved
            if other is not None and direction == MoveDirectionality.SWAP:
                rows[first] = other

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """`logits` [rows, vocabulary]; each row's drawn token gets the highest of all numbers."""
        if not self._rows:
            return logits
        if self._batch is None:
            # A row that is not ours (vLLM's own warm-up) is greedy.
            everyone = [self._rows.get(index) or _GREEDY for index in range(logits.shape[0])]
            wanted = [row.sampling for row in everyone]
            self._batch = everyone, RowParams.of(wanted, logits.device), seed_array([one.seed for one in wanted])
        everyone, params, seeds = self._batch
        positions = np.array([row.base + len(row.output) for row in everyone], dtype=np.uint64)
        try:
            drawn = sample(logits, params, seeds, positions)
        except BadLogits as error:
            # The others go on; these are failed by who reads the outputs.
            fine = logits.clone()
            fine[error.rows] = 0
            drawn = sample(fine, params, seeds, positions)
            for index in error.rows:
                everyone[index].is_broken = True
            self._wipe()
        return logits.scatter_(1, drawn[:, None], float("inf"))

    def _broken_rows(self, logits: torch.Tensor) -> torch.Tensor:
        """In place of vLLM's count of what is not a number, [rows]: infinite logits, or none to draw from, give no token either.

        A row stays broken: its prompt may be read in pieces, and what its first piece left in the cache is wiped.
        """
        everyone = self._batch[0] if self._batch and self._rows else [_GREEDY] * logits.shape[0]
        return torch.tensor([row.is_broken and row is not _GREEDY for row in everyone], dtype=torch.int32, device=logits.device)

    def _wipe(self) -> None:
        """Sets what is not finite in the cache to zero: the next owner of such a block would read it even through a mask (0 times NaN)."""
        for layer in self._layers.values():
            for cache in _tensors(getattr(layer, "kv_cache", None)):
                if cache.is_floating_point():
                    torch.nan_to_num_(cache, nan=0.0, posinf=0.0, neginf=0.0)


def _tensors(cache: Any) -> list[torch.Tensor]:
    """A layer's cache is one tensor or several."""
    return [cache] if isinstance(cache, torch.Tensor) else [tensor for part in cache or () for tensor in _tensors(part)]


_GREEDY = _Row(SamplingParams(seed=0, temperature=0.0), 0, [])
