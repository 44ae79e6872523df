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

    Key = tuple[int, tuple[int, ...]]

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
        self._blocks: OrderedDict[Key, Block] = OrderedDict()

    def reuse(self, row: int, tokens: Sequence[int]) -> int:
        """Puts what is known of the beginning of `tokens` into a row of the cache; how many tokens that is.

        The last token is never among them: the step that draws has to see it.
        """
        chain = self._chain(tokens, (len(tokens) - 1) // BLOCK)
        for index, (_, block) in enumerate(chain):
            self._cache.put(row, index * BLOCK, block.states)
        self._touch(chain)
        return len(chain) * BLOCK

    def keep(self, row: int, tokens: Sequence[int], num_cached: int) -> None:
        """Remembers the whole blocks among the first `num_cached` tokens of a row of the cache."""
        chain = self._chain(tokens, num_cached // BLOCK)
        for index in range(len(chain), num_cached // BLOCK):
            key = self._key(tokens, index, chain[-1][1].number if chain else _ROOT)
            block = self._add(key, self._cache.get(row, index * BLOCK, (index + 1) * BLOCK))
            if block is None:
                break
            chain.append((key, block))
        self._touch(chain)

    @staticmethod
    def _key(tokens: Sequence[int], index: int, before: int) -> Key:
        return before, tuple(tokens[index * BLOCK : (index + 1) * BLOCK])

    def _chain(self, tokens: Sequence[int], most: int) -> list[tuple[Key, Block]]:
        """The blocks that are known of the beginning of `tokens`, at most so many."""
        chain: list[tuple[Key, Block]] = []
        while len(chain) < most:
            key = self._key(tokens, len(chain), chain[-1][1].number if chain else _ROOT)
            block = self._blocks.get(key)
            if block is None:
                break
            chain.append((key, block))
        return chain

    def _add(self, key: Key, states: list[Tensor]) -> Block | None:
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

    def _touch(self, chain: list[tuple[Key, Block]]) -> None:
        """Makes a chain the last to be forgotten, its beginning after its end: without that, the rest is of no use."""
        for key, _ in reversed(chain):
            if key in self._blocks:  # where little is kept, a chain's end may have pushed out its beginning
                self._blocks.move_to_end(key)
