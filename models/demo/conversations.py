"""Random training conversations: which exchanges follow one another, and how a conversation becomes tokens.

Pure and seeded by the `random.Random` it is given. It must not know of models or files; `chat_template.jinja` says
the same as `encode` in the language of templates, and `tokens.py` checks that the two agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from models.demo import augment
from models.demo.corpus import Corpus, Dialogue, Exchange, Question, key

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")

RANDOM_SYSTEM_SHARE = 0.25
SYSTEM_SHARE = 0.5
DRILL_SHARE = 0.7
LONG_SHARE = 0.015
UNKNOWN_SHARE = 0.02
UNKNOWN_TOPIC = "unknown"
EXACT_SHARE = 0.2
TURNS = (1, 1, 1, 1, 2, 2, 3, 3, 4, 5)
LONG_TURNS = (6, 20)
SPECIAL_TOKENS = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
PAD, BEGIN, END, SYSTEM, USER, ASSISTANT, TOOL = range(len(SPECIAL_TOKENS))
ROLE_TOKENS = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT, "tool": TOOL}


@dataclass(frozen=True)
class Message:
    """One turn as the chat template sees it."""

    role: str
    content: str


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation and, beside each, the weight of predicting it (0 outside the answers)."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Head:
    """The first `tokens` of an answer choose which answer it becomes, so they weigh more; a drill has `drill_tokens`."""

    tokens: int = 8
    weight: float = 2.0
    drill_tokens: int = 12


PLAIN = Head(tokens=0, weight=1.0)


class Deck(Generic[T]):
    """Deals every card once before any card comes again, so that no entry is starved by chance."""

    def __init__(self, cards: Sequence[T], rng: random.Random) -> None:
        """Shuffle with `rng` before each pass."""
        self._cards = list(cards)
        self._rng = rng
        self._left: list[T] = []

    def deal(self) -> T:
        """The next card of a shuffled pass."""
        if not self._left:
            self._left = self._rng.sample(self._cards, len(self._cards))
        return self._left.pop()


class Renderer:
    """An endless source of conversations made of training wordings only.

    Most are drills: one question and only the beginning of its answer. A drill costs a third of a full exchange and teaches
    what is hard, the choice of the answer; the rest of an answer is soon known by heart.
    """

    def __init__(self, corpus: Corpus, rng: random.Random, unknown: str | None = None) -> None:
        """Draw from `rng`; `unknown` is the id of the question whose answer nonsense gets."""
        self._rng = rng
        self._held_out = corpus.held_out_keys()
        self._rarity = augment.Rarity.of([exchange.ask for exchange in corpus.exchanges()])
        # What cannot be known is a wide field: those questions come twice.
        twice = [question for question in corpus.questions if question.topic == UNKNOWN_TOPIC]
        self._deck: Deck[Question | Dialogue] = Deck([*corpus.questions, *twice, *corpus.dialogues], rng)
        self._drills = Deck([*corpus.questions, *twice], rng)
        self._unknown = corpus.question(unknown).exchange.answer if unknown else None
        self._systems = corpus.systems
        self._words = sorted(self._rarity.weights)

    def rows(self, tokenize: Callable[[str], list[int]], head: Head) -> Iterator[Encoded]:
        """Encoded conversations and drills without end."""
        while True:
            if self._rng.random() < DRILL_SHARE:
                row = encode([*self._system(), *self._exchange(self._drills.deal().exchange)], tokenize, head)
                end = next(i for i, weight in enumerate(row.weights) if weight) + head.drill_tokens
                yield Encoded(row.ids[:end], row.weights[:end])
            else:
                yield encode(self.conversation(), tokenize, head)

    def conversation(self) -> list[Message]:
        """A system prompt in half of all cases, then one to five exchanges (rarely many more) on changing subjects."""
        rng = self._rng
        messages = self._system()
        wanted = rng.randint(*LONG_TURNS) if rng.random() < LONG_SHARE else rng.choice(TURNS)
        exchanges = 0
        while exchanges < wanted:
            block = self._block()
            messages += block
            exchanges += len(block) // 2
        return messages

    def _block(self) -> list[Message]:
        """A question, a whole dialogue, or a line of nonsense with the answer that the model cannot know."""
        if self._unknown and self._rng.random() < UNKNOWN_SHARE:
            return [Message("user", self._nonsense()), Message("assistant", self._unknown)]
        card = self._deck.deal()
        if isinstance(card, Question):
            return self._exchange(card.exchange)
        return [message for exchange in (card.first.exchange, *card.turns) for message in self._exchange(exchange)]

    def _exchange(self, exchange: Exchange) -> list[Message]:
        return [Message("user", self._wording(exchange)), Message("assistant", exchange.answer)]

    def _wording(self, exchange: Exchange) -> str:
        """A wording as written or varied, but never one that is held out."""
        if self._rng.random() < EXACT_SHARE:
            return self._rng.choice(exchange.ask)
        while True:
            text = augment.vary(exchange.ask, self._rarity, self._rng)
            if key(text) not in self._held_out:
                return text

    def _nonsense(self) -> str:
        """Words of the corpus without sense, or letters that are no words."""
        rng = self._rng
        if rng.random() < 0.5:
            words = rng.choices(self._words, k=rng.randint(3, 9))
        else:
            words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(rng.randint(1, 5))]
        return " ".join(words) + rng.choice(("", "?", "."))

    def _system(self) -> list[Message]:
        """In half of all cases a usual prompt, or random words: the model must not mind what a system prompt says."""
        rng = self._rng
        if rng.random() >= SYSTEM_SHARE:
            return []
        if self._systems and rng.random() >= RANDOM_SYSTEM_SHARE:
            return [Message("system", rng.choice(self._systems))]
        return [Message("system", " ".join(rng.choices(self._words, k=rng.randint(3, 30))).capitalize() + ".")]


def encode(messages: Sequence[Message], tokenize: Callable[[str], list[int]], head: Head = PLAIN) -> Encoded:
    """Tokens of a whole conversation and their weights."""
    ids, weights = [BEGIN], [0.0]
    for message in messages:
        text = tokenize(message.content)
        ids += [ROLE_TOKENS[message.role], *text, END]
        if message.role == "assistant":
            first = min(head.tokens, len(text))
            weights += [0.0, *[head.weight] * first, *[1.0] * (len(text) - first), 1.0]
        else:
            weights += [0.0] * (len(text) + 2)
    return Encoded(tuple(ids), tuple(weights))


def batches(encoded: Iterator[Encoded], rng: random.Random, tokens: int, pool: int = 512) -> Iterator[list[Encoded]]:
    """Batches of conversations of like length, `tokens` at most with their padding (a longer one goes alone)."""
    while True:
        waiting = sorted((next(encoded) for _ in range(pool)), key=lambda conversation: len(conversation.ids))
        cut: list[list[Encoded]] = [[]]
        for conversation in waiting:
            if cut[-1] and len(conversation.ids) * (len(cut[-1]) + 1) > tokens:
                cut.append([])
            cut[-1].append(conversation)
        yield from rng.sample(cut, len(cut))
