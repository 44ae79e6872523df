from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from services.engine.backends.fake import FakeTokenizer
from services.engine.text import Detokenizer, StopStrings, TextOf

if TYPE_CHECKING:
    from collections.abc import Sequence


def pieces_of(text: str, tokenizer: FakeTokenizer, size: int) -> list[str]:
    """The pieces in which `text` comes out, with `size` tokens an event."""
    tokens, detokenizer = tokenizer.encode(text), Detokenizer(tokenizer)
    pieces = [detokenizer.push(tokens[i : i + size]) for i in range(0, len(tokens), size)]
    return [*pieces, detokenizer.flush()]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")), st.integers(1, 5))
def test_no_character_is_ever_cut(text: str, size: int) -> None:
    """Whatever the characters and wherever tokens cut them, pieces join to the text and hold no replacement character."""
    pieces = pieces_of(text, FakeTokenizer(), size)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_broken_bytes_show_at_the_end() -> None:
    """Bytes that never become a character come out as U+FFFD when no more can follow."""
    tokenizer = FakeTokenizer()
    detokenizer = Detokenizer(tokenizer)
    half = tokenizer.encode("a🚚")[0]  # a and the first three bytes of four
    assert detokenizer.push([half]) == "a"
    assert detokenizer.flush() == "\ufffd"


@given(
    st.lists(st.text(alphabet="abc", max_size=4), max_size=8),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_stop_strings_cut_at_the_earliest_wherever_pieces_end(pieces: list[str], stops: list[str]) -> None:
    """The text that goes out is the text before the first stop string, however it was cut into pieces."""
    searcher, out, found = StopStrings(stops), "", False
    for piece in pieces:
        text, found = searcher.push(piece)
        out += text
        if found:
            break
    out += searcher.flush()
    whole = "".join(pieces)
    # A stop string counts from the piece that completes it on: the search is over then, also if a later piece held an earlier one.
    ends = [len("".join(pieces[: count + 1])) for count in range(len(pieces))]
    for end in ends:
        hits = [position for position in (whole[:end].find(stop) for stop in stops) if position >= 0]
        if hits:
            assert found
            assert out == whole[: min(hits)]
            return
    assert not found
    assert out == whole


def test_text_that_cannot_begin_a_stop_string_is_not_held_back() -> None:
    """Only as much is held back as may become a stop string."""
    searcher = StopStrings(["###"])
    assert searcher.push("hello #") == ("hello ", False)
    assert searcher.push(" world") == ("# world", False)
    assert searcher.push("##") == ("", False)
    assert searcher.push("#!") == ("", True)


@given(
    st.text(alphabet="abc ", min_size=1, max_size=20),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=3), min_size=1, max_size=2),
    st.integers(0, 8),
    st.lists(st.integers(1, 6), max_size=12),
)
def test_an_answer_ends_at_the_same_token_however_its_tokens_were_merged(
    text: str, stop: list[str], min_tokens: int, sizes: list[int]
) -> None:
    """Text, number of tokens and end are those of one token an event, for a reader that comes late as well."""

    def read(sizes: list[int]) -> tuple[str, int, bool]:
        tokens, text_of = FakeTokenizer().encode(text), TextOf(FakeTokenizer(), stop, min_tokens)
        out, num_tokens, start = "", 0, 0
        for size in sizes:
            part = tokens[start : start + size]
            start += size
            piece, until_stop = text_of.take(part, len(part), is_last=start >= len(tokens))
            out += piece
            num_tokens += len(part) if until_stop is None else until_stop
            if until_stop is not None or start >= len(tokens):
                return out, num_tokens, until_stop is not None
        raise AssertionError

    assert read([*sizes, 1000]) == read([1] * 1000)


class SpaceDropping:
    """A tokenizer of the kind that marks words by a space before them, and drops the one at a text's beginning."""

    eos_token_ids: frozenset[int] = frozenset()

    def decode(self, token_ids: Sequence[int]) -> str:
        """A word each."""
        return "".join(f" w{token}" for token in token_ids)[1:]

    def encode(self, text: str) -> list[int]:
        """Not asked for."""
        raise NotImplementedError

    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """Not asked for."""
        raise NotImplementedError


def test_a_continued_prompt_keeps_the_space_before_the_first_word() -> None:
    """As it stands between prompt and answer; an answer of its own begins without one."""
    assert TextOf(SpaceDropping(), (), 0).take([4, 5], 2, is_last=True)[0] == "w4 w5"
    for num_before in (1, 5, 50):
        assert TextOf(SpaceDropping(), (), 0, list(range(num_before))).take([4, 5], 2, is_last=True)[0] == " w4 w5"


def test_a_continued_prompt_that_ends_within_a_character_gives_the_whole_of_it() -> None:
    """The answer's first token completes what the prompt's last began."""
    tokenizer = FakeTokenizer()
    before, *rest = tokenizer.encode("a🚚")
    text_of = TextOf(tokenizer, (), 0, [before])
    assert text_of.take(rest, len(rest), is_last=True)[0]
