"""Random variations of a wording, so that the model learns what is asked rather than how it was typed.

Pure: text and a `random.Random` go in, text comes out. Knows nothing of answers, tokens or the split; the caller
refuses a variation that happens to be a held-out wording.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Sequence

PREFIXES = (
    "hi, ", "Hi! ", "hello, ", "Hello! ", "Hey, ", "hey ", "please ", "Please, ", "quick question: ", "Question: ", "ok, ", "OK so ",
    "so ", "and ", "Could you help me? ", "I have a question. ", "I am new to this. ", "one more thing: ", "Good morning! ", "um, ",
    "Now ", "next: ", "I would like to know: ", "help: ", "Sorry, ", "I was wondering, ", "Tell me, ", "can you tell me ", "Thanks! ",
)  # fmt: skip
SUFFIXES = (
    " please", ", please", " thanks", " Thanks!", ", thank you", " thx", " ?", "??", "!", " please explain", " in simple terms", " briefly",
    " in short", " for a beginner", " again", " exactly", " really", " simply", " in plain words", " I am curious", " (short answer)",
)  # fmt: skip
# Words of one group may stand for one another in a question; sense matters more than grammar here.
SYNONYMS = (
    ("explain", "describe", "define", "introduce", "clarify", "tell me about", "what is", "what's", "explain to me", "give me an idea of"),
    ("explained", "meaning", "explanation", "definition", "basics", "in a nutshell", "overview", "introduction", "summary", "intro"),
    ("can you", "could you", "would you", "will you", "can u", "please", "could you please", "can you please"),
    ("why", "for what reason", "how come"),
    ("use", "need", "want", "choose", "run", "have"),
    ("used", "needed", "useful", "good"),
    ("simple", "plain", "easy", "basic", "short"),
    ("difference between", "differences between", "how do i tell apart", "comparison of", "compare"),
    ("versus", "vs", "vs.", "or", "compared with", "compared to", "against"),
    ("what does", "what do", "what would"),
    ("how do i", "how can i", "how to", "how should i", "how would i", "what is the way to", "best way to"),
    ("people", "teams", "engineers", "developers", "one", "we", "i", "you"),
    ("should i", "do i need to", "must i", "is it good to", "would you", "should we"),
    ("server", "service", "system", "machine"),
    ("happens", "goes on", "occurs"),
    ("bad", "wrong", "harmful", "a problem"),
    ("good", "right", "best", "sensible"),
    ("matter", "count", "help"),
)
TYPO_MIN_LENGTH = 5
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Rarity:
    """How much each word tells of the question: the logarithm of 1 / its share of all questions, at least 0."""

    weights: dict[str, float]
    unseen: float

    @classmethod
    def of(cls, questions: Iterable[Sequence[str]]) -> Rarity:
        """Count the questions (each one a list of wordings) in which a word occurs."""
        counts: Counter[str] = Counter()
        total = 0
        for wordings in questions:
            total += 1
            counts.update({word.lower() for wording in wordings for word in _WORD.findall(wording)})
        return cls({word: math.log(total / count) for word, count in counts.items()}, math.log(max(total, 2)))

    def __call__(self, word: str) -> float:
        """Weight of a word in nats; punctuation and case do not count."""
        found = _WORD.findall(word.lower())
        return max((self.weights.get(part, self.unseen) for part in found), default=0.0)


def vary(wordings: Sequence[str], rarity: Rarity, rng: random.Random) -> str:
    """One random variation of one question's wordings."""
    text = _base(wordings, rarity, rng)
    if rng.random() < 0.35:
        text = _swap_synonyms(text, rng)
    words = text.split()
    if rng.random() < 0.5:
        words = _drop_words(words, rarity, rng)
    if rng.random() < 0.1:
        words = _swap_neighbours(words, rng)
    if rng.random() < 0.12:
        words = _mistype(words, rng)
    return _dress(" ".join(words), rng)


def _base(wordings: Sequence[str], rarity: Rarity, rng: random.Random) -> str:
    """Mostly one wording as it stands; else two spliced, two in a row, or the telling words of several."""
    first, second = rng.choice(wordings), rng.choice(wordings)
    kind = rng.random()
    if kind < 0.72 or len(wordings) == 1:
        return first
    if kind < 0.82:
        head, tail = first.split(), second.split()
        return " ".join(head[: rng.randint((len(head) + 1) // 2, len(head))] + tail[rng.randint(0, len(tail) // 2) :])
    if kind < 0.88:
        return f"{first} {second}"
    return _keywords([*first.split(), *second.split()], rarity, rng)


def _keywords(words: Sequence[str], rarity: Rarity, rng: random.Random) -> str:
    """The more telling half of the words, in their order or shuffled, each once."""
    unique = list({word.strip(string.punctuation).lower(): None for word in words})
    ranked = sorted(unique, key=lambda word: -rarity(word) * rng.uniform(0.7, 1.3))
    kept = set(ranked[: max(2, rng.randint(len(ranked) // 3, (2 * len(ranked)) // 3))])
    chosen = [word for word in unique if word in kept]
    if rng.random() < 0.3:
        rng.shuffle(chosen)
    return " ".join(chosen)


def _swap_synonyms(text: str, rng: random.Random) -> str:
    for group in rng.sample(SYNONYMS, len(SYNONYMS)):
        if rng.random() < 0.5:
            continue
        for phrase in sorted(group, key=len, reverse=True):
            match = re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE)
            if match:
                text = text[: match.start()] + rng.choice(group) + text[match.end() :]
                break
    return text


def _drop_words(words: list[str], rarity: Rarity, rng: random.Random) -> list[str]:
    """Lose each word with 16 % in every second wording (8 % in all), but never the two that tell the question."""
    telling = sorted(range(len(words)), key=lambda i: -rarity(words[i]))[:2]
    return [word for i, word in enumerate(words) if i in telling or rng.random() >= 0.16]


def _swap_neighbours(words: list[str], rng: random.Random) -> list[str]:
    if len(words) < 3:
        return words
    i = rng.randrange(len(words) - 1)
    return [*words[:i], words[i + 1], words[i], *words[i + 2 :]]


def _mistype(words: list[str], rng: random.Random) -> list[str]:
    """Damage one letter of one longer word."""
    candidates = [i for i, word in enumerate(words) if len(word) >= TYPO_MIN_LENGTH]
    if not candidates:
        return words
    i = rng.choice(candidates)
    word, at = words[i], rng.randrange(1, len(words[i]) - 1)
    damaged = (
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + rng.choice(string.ascii_lowercase) + word[at + 1 :],
    )
    return [*words[:i], rng.choice(damaged), *words[i + 1 :]]


def _dress(text: str, rng: random.Random) -> str:
    """Prefix, suffix, case and punctuation."""
    if rng.random() < 0.25:
        text = rng.choice(PREFIXES) + (text[:1].lower() + text[1:] if rng.random() < 0.5 else text)
    if rng.random() < 0.15:
        text = text.rstrip(".?!") + rng.choice(SUFFIXES)
    case = rng.random()
    if case < 0.3:
        text = text.lower()
    elif case < 0.5:
        text = text[:1].upper() + text[1:]
    elif case < 0.51:
        text = text.upper()
    ending = rng.random()
    if ending < 0.25:
        text = text.rstrip(".?!, ")
    elif ending < 0.35:
        text = re.sub(r"[^\w\s'<>/-]", "", text)
    elif ending < 0.45:
        text = text.rstrip(".?!, ") + rng.choice("?.!")
    return text or "?"
