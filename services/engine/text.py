"""Tokens to text, as they come: whole UTF-8 characters only, and stop strings found across the borders of events."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.engine.generation import Tokenizer

# At most three bytes of a character can be missing, and some tokenizers decode each as a replacement character of its own.
_REPLACEMENT = "\ufffd"
_MAX_UNFINISHED = 3
# More than the tokens of one word, so that the window begins where decoding does not matter to its end.
_MAX_BEFORE = 6


class Detokenizer:
    """Decodes a growing list of tokens piece by piece.

    A piece is decoded together with the tokens before it (a window from the last whole piece), since tokenizers join pieces by context; a
    character whose bytes are not all there is held back until they are, or until the end.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        """Starts with no token; `before` are those whose text it goes on from, of which the last ones matter."""
        self._tokenizer = tokenizer
        self._window: list[int] = list(before[-_MAX_BEFORE:])
        if self._window and tokenizer.decode(self._window).endswith(_REPLACEMENT):
            self._window = []  # the first token may complete a character, of which nothing was given
        self._num_read = len(self._window)
        self._given = 0
        self._is_whole = True

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that became whole with these tokens."""
        self._window.extend(token_ids)
        text = self._fresh_text()
        stable = len(text)
        while stable and len(text) - stable < _MAX_UNFINISHED and text[stable - 1] == _REPLACEMENT:
            stable -= 1
        piece = text[self._given : stable]
        self._is_whole = stable == len(text)
        if self._is_whole:
            self._window = self._window[self._num_read :]
            self._num_read = len(self._window)
            self._given = 0
        else:
            self._given = max(self._given, stable)
        return piece

    def flush(self) -> str:
        """What was held back, at the end: bytes that never became a character show as U+FFFD."""
        return "" if self._is_whole else self._fresh_text()[self._given :]

    def _fresh_text(self) -> str:
        """The window's text without that of its first `_num_read` tokens, which were given already and are there for context."""
        text = self._tokenizer.decode(self._window)
        return text[len(self._tokenizer.decode(self._window[: self._num_read])) :] if self._num_read else text


class StopStrings:
    """Looks for the earliest of several strings in a text that comes in pieces; holds back what may be the beginning of one."""

    def __init__(self, strings: Sequence[str]) -> None:
        """`strings` may be empty: then text passes straight through."""
        self._strings = tuple(strings)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that can go out, and whether a stop string was found; it and all after it are dropped."""
        if not self._strings:
            return piece, False
        text = self._held + piece
        found = [position for position in (text.find(string) for string in self._strings) if position >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max(self._overlap(text, string) for string in self._strings)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, string: str) -> int:
        """Length of the longest end of `text` with which `string` begins."""
        for size in range(min(len(text), len(string) - 1), 0, -1):
            if string.startswith(text[-size:]):
                return size
        return 0


class TextOf:
    """The text of an answer as it can go out, from its tokens as they come."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], min_tokens: int, before: Sequence[int] = ()) -> None:
        """Stop strings count in what comes after `min_tokens` tokens; `before` is a prompt that the answer continues."""
        self._detokenizer = Detokenizer(tokenizer, before)
        self._stop_strings = StopStrings(stop) if stop else None
        self._min_tokens = min_tokens
        self._num_tokens = 0

    def take(self, token_ids: Sequence[int], num_tokens: int, *, is_last: bool) -> tuple[str, int | None]:
        """The text that can go out with these, and after how many of them a stop string ended it, if one did.

        `num_tokens` counts a stop token that has no text.
        """
        if self._stop_strings is None:
            text = self._detokenizer.push(token_ids)
            return (text + self._detokenizer.flush() if is_last else text), None
        # One by one, so that an answer ends at the same token however its tokens were merged on their way.
        text = ""
        for number, token in enumerate(token_ids, 1):
            piece, is_found = self._search(self._detokenizer.push([token]), 1, self._stop_strings)
            text += piece
            if is_found:
                return text, number
        if not is_last:
            return text, None
        piece, is_found = self._search(self._detokenizer.flush(), num_tokens - len(token_ids), self._stop_strings)
        text += piece
        return (text, num_tokens) if is_found else (text + self._stop_strings.flush(), None)

    def _search(self, piece: str, num_tokens: int, stop_strings: StopStrings) -> tuple[str, bool]:
        self._num_tokens += num_tokens
        return stop_strings.push(piece) if self._num_tokens > self._min_tokens else (piece, False)
