from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.engine.backends.fake import FakeTokenizer
from services.engine.text import Detokenizer, StopStrings


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
