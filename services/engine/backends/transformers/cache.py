"""The key/value cache of a batch: one row per request in buffers that are written in place.

Row r holds its tokens at columns 0..length-1, whoever shares the batch, so requests join and leave without moving the others. What lies
behind a row's length is stale but finite: masks hide it, and the next tokens overwrite it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_FIRST_COLUMNS = 256


@dataclass(frozen=True, slots=True)
class Window:
    """What a forward pass writes and reads: rows first..last-1, `num_new` tokens each behind the `start` tokens that the longest has.

    `places` [rows * num_new] are the written places in a buffer of rows and columns laid end to end, or None if all rows have the same
    length. `width` columns are read.
    """

    first: int
    last: int
    start: int
    num_new: int
    places: Tensor | None

    @property
    def width(self) -> int:
        """Columns that are read."""
        return self.start + self.num_new


class RowLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not typed for mypy
    """Keys and values of one layer, [rows, columns, heads, head size] each; the first pass tells the sizes."""

    is_sliding = False

    def __init__(self, cache: RowCache) -> None:
        """`cache` knows the window of the running pass."""
        super().__init__()
        self._cache = cache

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Stores what is new, [rows of the window, heads, new tokens, head size], and returns all that the pass may read."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window = self._cache.window
        _write(self.keys, key_states, window)
        _write(self.values, value_states, window)
        if not window.start:
            return key_states, value_states
        return _read(self.keys, window), _read(self.values, window)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes the buffers in the sizes and dtype of these states."""
        self.keys, self.values = self._new(key_states), self._new(value_states)
        self.is_initialized = True
        self.bytes_per_token = sum(buffer[0, 0].nbytes for buffer in (self.keys, self.values))

    def reserve(self, num_rows: int, num_columns: int) -> None:
        """Resizes the buffers, keeping what is in them as far as it has room."""
        if self.is_initialized and self.keys.shape[:2] != (num_rows, num_columns):
            self.keys = _resized(self.keys, num_rows, num_columns)
            self.values = _resized(self.values, num_rows, num_columns)

    def drop(self) -> None:
        """Frees the buffers."""
        self.keys = self.values = None
        self.is_initialized = False

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that a pass of `query_length` tokens reads, and the first of them."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Columns before the new tokens."""
        return self._cache.window.start

    def get_max_length(self) -> int:
        """No bound of its own."""
        return -1

    def _new(self, states: Tensor) -> Tensor:
        """Zeros, not garbage: a masked NaN is still a NaN."""
        _, heads, _, size = states.shape
        return states.new_zeros(self._cache.num_rows, self._cache.num_columns, heads, size)


class RowCache(Cache):  # type: ignore[misc]  # transformers is not typed for mypy
    """The layers' rows; they grow by doubling as requests come and get longer."""

    def __init__(self, num_layers: int, max_rows: int, max_columns: int, device: torch.device, max_bytes: int = 0) -> None:
        """Takes no memory yet; `max_rows` and `max_columns` (tokens) bound what it will take, and so does `max_bytes`, if it is not 0."""
        super().__init__(layers=[RowLayer(self) for _ in range(num_layers)])
        self.bytes_per_token = 0
        """Of all layers; 0 until the first pass."""
        self._max_bytes = max_bytes
        self._expected = 1, 1
        self.window = Window(0, 1, 0, 0, None)
        self._max_rows, self._max_columns = max_rows, max_columns
        self._device = device
        self.drop()

    def open(self, first: int, lengths: Sequence[int], num_new: int) -> Window:
        """Makes room for, and aims the next pass at, `num_new` tokens in each of the rows from `first` on, which have `lengths` tokens."""
        start, last = max(lengths), first + len(lengths)
        self._reserve(last, start + num_new)
        places = None
        if min(lengths) != start:
            behind = torch.tensor([(first + row) * self.num_columns + length for row, length in enumerate(lengths)], device=self._device)
            places = (behind[:, None] + torch.arange(num_new, device=self._device)).view(-1)
        self.window = Window(first, last, start, num_new, places)
        return self.window

    def fits(self, num_rows: int, num_columns: int) -> bool:
        """Whether there is memory for so many rows of so many tokens."""
        return not self._max_bytes or num_rows * num_columns * self.bytes_per_token <= self._max_bytes

    def expect(self, num_rows: int, num_columns: int) -> None:
        """Tells what the requests of now will come to at most, so that no memory is taken for more where it is short."""
        self._expected = num_rows, num_columns

    def put(self, row: int, start: int, states: Sequence[Tensor]) -> None:
        """Writes what `get` gave to columns `start` and after of a row."""
        num_new = states[0].shape[0]
        self._reserve(row + 1, start + num_new)
        for layer, keys, values in zip(self.layers, states[::2], states[1::2], strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys[None].transpose(1, 2), values[None].transpose(1, 2))
            layer.keys[row, start : start + num_new] = keys
            layer.values[row, start : start + num_new] = values

    def get(self, row: int, start: int, stop: int) -> list[Tensor]:
        """A copy of some columns of a row: of each layer keys, then values, [columns, heads, head size]."""
        return [buffer[row, start:stop].clone() for buffer in self._buffers()]

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of row `source` to row `target`."""
        for buffer in self._buffers() if length else ():
            buffer[target, :length] = buffer[source, :length]

    def clear(self, row: int) -> None:
        """Sets a row to zero: values that are not finite would reach its next owner even through a mask."""
        for buffer in self._buffers():
            buffer[row : row + 1].zero_()

    def drop(self) -> None:
        """Frees the memory."""
        self.num_rows, self.num_columns = 1, min(_FIRST_COLUMNS, self._max_columns)
        for layer in self.layers:
            layer.drop()

    def _reserve(self, num_rows: int, num_columns: int) -> None:
        self.num_rows = _doubled(self.num_rows, num_rows, self._max_rows)
        self.num_columns = _doubled(self.num_columns, num_columns, self._max_columns)
        if not self.fits(self.num_rows, self.num_columns):
            self.num_rows, self.num_columns = max(num_rows, self._expected[0]), max(num_columns, self._expected[1])
        for layer in self.layers:
            layer.reserve(self.num_rows, self.num_columns)

    def _buffers(self) -> list[Tensor]:
        return [buffer for layer in self.layers if layer.is_initialized for buffer in (layer.keys, layer.values)]


def _write(buffer: Tensor, states: Tensor, window: Window) -> None:
    states = states.transpose(1, 2)
    if window.places is None:
        buffer[window.first : window.last, window.start : window.width] = states
    else:
        heads, size = states.shape[2:]
        buffer.view(-1, heads, size).index_copy_(0, window.places, states.reshape(-1, heads, size))


def _read(buffer: Tensor, window: Window) -> Tensor:
    return buffer[window.first : window.last, : window.width].transpose(1, 2)


def _doubled(size: int, needed: int, limit: int) -> int:
    while size < needed:
        size *= 2
    return max(needed, min(size, limit))


def _resized(buffer: Tensor, num_rows: int, num_columns: int) -> Tensor:
    resized = buffer.new_zeros(num_rows, num_columns, *buffer.shape[2:])
    rows, columns = min(buffer.shape[0], num_rows), min(buffer.shape[1], num_columns)
    resized[:rows, :columns] = buffer[:rows, :columns]
    return resized
