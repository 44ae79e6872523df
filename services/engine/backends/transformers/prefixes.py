"""Beginnings of prompts that were read before: their keys and values, in blocks, the longest unused forgotten first.

A block is known by its tokens and the block before it, so what two prompts share is kept once, however they go on.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from services.engine.backends.transformers.cache import RowCache

BLOCK = 32
"""Tokens of a block: what is shorter is read faster than it is found."""
_ROOT = 0


@dataclass(frozen=True, slots=True)
class Block:
    """`states`: of each buffer of the cache, [BLOCK, heads, head size]."""

    number: int
    states: list[Tensor]


class Prefixes:
    """The store of one engine; its thread's alone."""

    def __init__(self, cache: RowCache, max_bytes: int) -> None:
        """`max_bytes` bounds what it keeps; 0 keeps nothing."""
        self._cache = cache
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._last_number = _ROOT
        self._blocks: OrderedDict[tuple[int, tuple[int, ...]], Block] = OrderedDict()

    def reuse(self, row: int, tokens: Sequence[int]) -> int:
        """Puts what is known of the beginning of `tokens` into a row of the cache; how many tokens that is.

        The last token is never among them: the step that draws has to see it.
        """
        found, number = [], _ROOT
        for start in range(0, len(tokens) - BLOCK, BLOCK):
            block = self._blocks.get((number, tuple(tokens[start : start + BLOCK])))
            if block is None:
                break
            found.append((start, block))
            number = block.number
        for start, block in found:
            self._cache.put(row, start, block.states)
        self._touch(tokens, len(found))
        return len(found) * BLOCK

    def keep(self, row: int, tokens: Sequence[int], num_cached: int) -> None:
        """Remembers the whole blocks among the first `num_cached` tokens of a row of the cache."""
        number = _ROOT
        for start in range(0, num_cached - BLOCK + 1, BLOCK):
            key = number, tuple(tokens[start : start + BLOCK])
            block = self._blocks.get(key)
            if block is None:
                block = self._add(key, self._cache.get(row, start, start + BLOCK))
                if block is None:
                    break
            number = block.number
        self._touch(tokens, num_cached // BLOCK)

    def _add(self, key: tuple[int, tuple[int, ...]], states: list[Tensor]) -> Block | None:
        size = sum(state.nbytes for state in states)
        if size > self._max_bytes:
            return None
        while self._num_bytes + size > self._max_bytes:
            _, old = self._blocks.popitem(last=False)
            self._num_bytes -= sum(state.nbytes for state in old.states)
        self._last_number += 1
        self._num_bytes += size
        block = self._blocks[key] = Block(self._last_number, states)
        return block

    def _touch(self, tokens: Sequence[int], num_blocks: int) -> None:
        """Makes a chain the last to be forgotten, its beginning after its end: without that, the rest is of no use."""
        keys, number = [], _ROOT
        for index in range(num_blocks):
            key = number, tuple(tokens[index * BLOCK : (index + 1) * BLOCK])
            block = self._blocks.get(key)
            if block is None:
                break
            keys.append(key)
            number = block.number
        for key in reversed(keys):
            self._blocks.move_to_end(key)
