"""Iteration-level batching: which rows run in a step, and what becomes of their tokens. No thread, no event loop.

Rows 0..num_ready-1 draw a token in every step; the rows behind them still read their prompts, at most so many tokens a step, so that a
long prompt delays the others little. A prompt's last token is left to the first drawing step, so there is one place that samples.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from services.engine.backends.transformers.drawn import Drawn, engine_error
from services.engine.backends.transformers.pace import PrefillPace, alike
from services.engine.backends.transformers.prefixes import Prefixes
from services.engine.generation import BackendError
from services.engine.sampling import BadLogits, RowParams, sample, seed_array

if TYPE_CHECKING:
    import numpy.typing as npt

    from services.engine.backends.transformers.forward import Forward
    from services.engine.backends.transformers.sequence import Sequence

# Prompt tokens that are read at most between two steps of the running rows; fewer where they take longer than a few steps (`pace.py`).
# While none runs, nobody waits for the next step but those that read, and the more of them read together the better the batch stays filled.
_PREFILL_TOKENS_CPU = 256
_PREFILL_TOKENS_ACCELERATOR = 2048
_PREFILL_FACTOR_ALONE = 8


class Batch:
    """The running rows; row i of `rows` is row i of the cache."""

    def __init__(self, forward: Forward, max_prefix_bytes: int = 0) -> None:
        """Starts empty. `max_prefix_bytes` bounds what is kept of prompts for later ones."""
        self._forward = forward
        self._prefixes = Prefixes(forward.cache, max_prefix_bytes)
        self._step_tokens = _PREFILL_TOKENS_CPU if forward.device.type == "cpu" else _PREFILL_TOKENS_ACCELERATOR
        self._num_ready = 0
        self._pace = PrefillPace()
        self._params: tuple[RowParams, npt.NDArray[np.uint64]] | None = None
        self._owed: list[Drawn] = []
        """Outcomes of the running step so far, of rows that are out already."""
        self.rows: list[Sequence] = []

    @property
    def unanswered(self) -> list[Sequence]:
        """Whom nothing final was told yet."""
        return [*(one.sequence for one in self._owed), *self.rows]

    @property
    def num_cached_tokens(self) -> int:
        """Tokens in the cache."""
        return sum(row.num_cached for row in self.rows)

    def has_room(self, sequence: Sequence) -> bool:
        """Whether the cache has memory for one more, to its last token; alone it always may."""
        return not self.rows or self._forward.cache.fits(len(self.rows) + 1, self._num_columns(sequence))

    def join(self, sequence: Sequence) -> None:
        """Adds a request behind the others."""
        self._forward.cache.expect(len(self.rows) + 1, self._num_columns(sequence))
        self.rows.append(sequence)

    def _num_columns(self, more: Sequence) -> int:
        return max(more.max_total, *(row.max_total for row in self.rows), 0)

    def step(self) -> list[Drawn]:
        """Drops cancelled rows, reads some prompt, and draws one token for every row that has read its prompt."""
        self._remove([index for index, row in enumerate(self.rows) if row.is_cancelled])
        self._owed = self._prefill()
        drawn = self._owed + (self._decode() if self._num_ready else [])
        self._owed = []
        if not self.rows:
            self._forward.cache.drop()
        return drawn

    def fail(self, error: BackendError) -> list[Drawn]:
        """Ends every row and frees the cache."""
        failed = self._owed + [Drawn(row, error=error) for row in self.rows]
        self.rows, self._owed, self._num_ready, self._params = [], [], 0, None
        self._forward.cache.drop()
        return failed

    def _prefill(self) -> list[Drawn]:
        self._promote()
        budget = self._pace.budget(self._step_tokens) if self._num_ready else self._step_tokens * _PREFILL_FACTOR_ALONE
        count = self._num_to_read(budget)
        if not count:
            return []
        first = self._num_ready
        group = self.rows[first : first + count]
        num_tokens = min(max(row.num_to_prefill for row in group), budget)
        parts = [row.tokens[row.num_cached : row.num_cached + min(num_tokens, row.num_to_prefill)] for row in group]
        start = time.perf_counter()
        try:
            self._forward(first, [part + [0] * (num_tokens - len(part)) for part in parts], [row.num_cached for row in group])
        except torch.AcceleratorError:
            raise  # no row is at fault: the device is of no use any more
        except Exception as error:  # noqa: BLE001 - only those that read fail, whatever a model raises; the others go on
            return self._fail_rows(range(first, first + count), engine_error(error))
        self._forward.finish()
        self._pace.read(num_tokens * count, time.perf_counter() - start)
        for row, part in zip(group, parts, strict=True):
            row.num_cached += len(part)
        self._promote()
        return []

    def _num_to_read(self, budget: int) -> int:
        """How many of the rows behind the ready ones read together: one that has begun alone, else as many fresh ones as fit."""
        fresh = self.rows[self._num_ready :]
        if not fresh or not fresh[0].is_fresh:
            return len(fresh[:1])
        longest = known = count = 0
        num_columns = max(row.max_total for row in self.rows)
        for row in fresh:
            self._begin(self._num_ready + count)
            longest, known = max(longest, row.num_to_prefill), max(known, row.num_cached)
            # All are padded to the longest behind what each knows: that must not come to more columns than a row may have.
            if not row.is_fresh or (count and (longest * (count + 1) > budget or known + min(longest, budget) > num_columns)):
                break
            count += 1
        return count

    def _begin(self, index: int) -> None:
        """Puts what is known of a prompt's beginning into its row, once; when its turn has come, so that rows that wait cost no copy."""
        row = self.rows[index]
        if row.is_begun:
            return
        row.is_begun = True
        try:
            row.num_cached = row.num_reused = self._prefixes.reuse(index, row.tokens)
        except torch.AcceleratorError:
            raise
        except Exception:  # noqa: BLE001 - there was no memory for it, say: then it is read as if it were new, and that pass tells
            self._forward.cache.clear(index)

    def _promote(self) -> None:
        """Begins the row that reads next, and counts those that have read their prompt as ready."""
        while self._num_ready < len(self.rows):
            self._begin(self._num_ready)
            if self.rows[self._num_ready].num_to_prefill:
                return
            self._num_ready += 1
            self._params = None

    def _decode(self) -> list[Drawn]:
        ready = self.rows[: self._num_ready]
        start = time.perf_counter()
        logits = self._pass(ready)
        self._forward.finish()
        self._pace.decoded(time.perf_counter() - start)
        for index, row in enumerate(ready):
            if row.must_go_on:
                logits[index, row.stop_ids] = float("-inf")
        tokens, bad = self._sample(logits)
        pairs = [(index, row, token) for index, (row, token) in enumerate(zip(ready, tokens, strict=True)) if index not in bad]
        drawn = [self._accept(row, index, token) for index, row, token in pairs]
        failed = [Drawn(ready[index], error=BackendError("the model gave logits that are not finite")) for index in bad]
        for index in bad:
            self._forward.cache.clear(index)
        ended = {id(one.sequence) for one in drawn if one.finish_reason}
        self._remove([index for index, row in enumerate(ready) if index in bad or id(row) in ended])
        return drawn + failed

    def _pass(self, ready: list[Sequence]) -> torch.Tensor:
        """Logits of all ready rows: neighbours of like length together, for a pass reads as many columns of each row as the longest has."""
        lengths = [row.num_cached for row in ready]
        parts = [
            self._forward(first, [row.tokens[-1:] for row in ready[first:last]], lengths[first:last]) for first, last in alike(lengths)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _accept(self, row: Sequence, index: int, token: int) -> Drawn:
        """A row's token. With its first one the prompt has proved to compute well, so that others may begin with it."""
        if row.num_new > len(row.request.resume_token_ids):
            return Drawn(row, token, row.accept(token))
        self._prefixes.keep(index, row.tokens, row.num_cached)
        num_reused = min(row.num_reused, len(row.request.prompt_token_ids))
        return Drawn(row, token, row.accept(token), num_cached_tokens=num_reused)

    def _sample(self, logits: torch.Tensor) -> tuple[list[int], list[int]]:
        """A token for each ready row, and the rows whose token means nothing because their logits are not finite."""
        if logits.device.type == "mps":
            logits = logits.cpu()  # it has no float64
        ready = self.rows[: self._num_ready]
        if self._params is None:
            wanted = [row.request.sampling for row in ready]
            self._params = RowParams.of(wanted, logits.device), seed_array([one.seed for one in wanted])
        params, seeds = self._params
        positions = np.array([row.num_new for row in ready], dtype=np.uint64)
        try:
            return sample(logits, params, seeds, positions).tolist(), []
        except BadLogits as error:
            logits[error.rows] = 0
            return sample(logits, params, seeds, positions).tolist(), error.rows

    def _fail_rows(self, indices: range, error: BackendError) -> list[Drawn]:
        """Ends some rows; what their broken pass left in the cache is wiped."""
        failed = [Drawn(self.rows[index], error=error) for index in indices]
        for index in indices:
            self._forward.cache.clear(index)
        self._remove(list(indices))
        return failed

    def _remove(self, indices: list[int]) -> None:
        """Takes rows out, the last first; a ready row's place goes to the last ready one, and those that still read stay in their order.

        Rows that still read are wiped where they leave a place: nobody has seen yet whether their values are finite.
        """
        for index in reversed(indices):
            hole = index
            if index < self._num_ready:
                self._num_ready -= 1
                self._params = None
                self._move(self._num_ready, index)
                hole = self._num_ready
            elif self.rows[index].num_cached:
                self._forward.cache.clear(index)
            for source in range(hole + 1, len(self.rows)):
                self._move(source, source - 1)
                if self.rows[source].num_cached:
                    self._forward.cache.clear(source)
            self.rows.pop()

    def _move(self, source: int, target: int) -> None:
        if source != target:
            self._forward.cache.move(source, target, self.rows[source].num_cached)
            self.rows[target] = self.rows[source]
