"""How much of a prompt is read between two steps of the others, and which rows share a pass: by what the passes cost here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# A step of the others and the reading before it together take so many times a step alone, by the last ones.
_SLOWER = 1.3
_SHARE = 0.3
_MIN_TOKENS = 16
# A pass costs as much as reading so many columns of the cache, whatever it computes: about 5 ms, and 1.2 us a column, for the demo model
# on the machine of docs/batching.md. Larger models have dearer columns and passes alike.
_PASS_COLUMNS = 4096


class PrefillPace:
    """Averages of what steps and reading took; what is read gets dearer the longer the prompt is, and the average follows."""

    def __init__(self) -> None:
        """Nothing was seen."""
        self._step_seconds = 0.0
        self._token_seconds = 0.0

    def decoded(self, seconds: float) -> None:
        """A step of the ready rows took so long."""
        self._step_seconds += (seconds - self._step_seconds) * (_SHARE if self._step_seconds else 1)

    def read(self, num_tokens: int, seconds: float) -> None:
        """Reading so many tokens took so long."""
        self._token_seconds += (seconds / num_tokens - self._token_seconds) * (_SHARE if self._token_seconds else 1)

    def budget(self, most: int) -> int:
        """Tokens to read before the next step, at most `most`."""
        if not self._token_seconds:
            return most
        return min(most, max(_MIN_TOKENS, int(_SLOWER * self._step_seconds / self._token_seconds)))


def alike(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Rows cut into runs, first and last + 1 of each.

    One run, unless reading all rows as far as the longest costs more than more passes.
    """
    longest = max(lengths)
    bounds = [0, *(index for index in range(1, len(lengths)) if _is_long(lengths[index], longest) != _is_long(lengths[index - 1], longest))]
    runs = list(zip(bounds, [*bounds[1:], len(lengths)], strict=True))
    columns = sum((last - first) * max(lengths[first:last]) for first, last in runs) + (len(runs) - 1) * _PASS_COLUMNS
    return runs if columns < len(lengths) * longest else [(0, len(lengths))]


def _is_long(length: int, longest: int) -> bool:
    return 2 * length > longest
