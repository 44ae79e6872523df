"""The demo model's corpus: typed, validated, and split into wordings for training and wordings held out.

Owns the reading of `corpus/*.yaml` and every rule that those files keep. It must not know how conversations are
rendered into tokens (`conversations.py`), nor anything of torch. Nothing here is random.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CORPUS_DIR = Path(__file__).parent / "corpus"
MIN_WORDINGS = {"questions": 3, "turns": 2}
MAX_ANSWER_WORDS = 80


class CorpusError(ValueError):
    """A corpus file breaks a rule; the message names the file and the entry."""


@dataclass(frozen=True)
class Exchange:
    """One thing a person may say, in all its wordings, and the one answer to it."""

    ask: tuple[str, ...]
    held_out: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Question:
    """A question that stands by itself; `topic` is the name of its file."""

    id: str
    topic: str
    exchange: Exchange


@dataclass(frozen=True)
class Dialogue:
    """Follow-ups that make sense only after the question `first`."""

    id: str
    topic: str
    first: Question
    turns: tuple[Exchange, ...]


@dataclass(frozen=True)
class Corpus:
    """All questions, dialogues and system prompts, in the order of the files' names."""

    questions: tuple[Question, ...]
    dialogues: tuple[Dialogue, ...]
    systems: tuple[str, ...]

    def exchanges(self) -> list[Exchange]:
        """Every exchange of questions and of follow-ups."""
        return [q.exchange for q in self.questions] + [turn for d in self.dialogues for turn in d.turns]

    def held_out_keys(self) -> frozenset[str]:
        """`key` of every held-out wording; a training wording with one of these keys would spoil the test."""
        return frozenset(key(wording) for exchange in self.exchanges() for wording in exchange.held_out)

    def question(self, question_id: str) -> Question:
        """Find a question by its id."""
        for question in self.questions:
            if question.id == question_id:
                return question
        raise CorpusError(f"no question has the id {question_id!r}")


def key(text: str) -> str:
    """Fold case, punctuation and white space, so that wordings and answers compare by their words alone."""
    return " ".join(re.findall(r"\w+", text.lower().replace("'", "")))


def load(directory: Path = CORPUS_DIR) -> Corpus:
    """Read and validate all files of a directory; `CorpusError` names the file and id of the first fault."""
    files = sorted(directory.glob("*.yaml"))
    if not files:
        raise CorpusError(f"{directory}: no .yaml files here")
    documents = {path: _document(path) for path in files}
    questions = tuple(_question(path, entry) for path, doc in documents.items() for entry in _entries(path, doc, "questions"))
    by_id = {q.id: q for q in questions}
    dialogues = tuple(_dialogue(path, entry, by_id) for path, doc in documents.items() for entry in _entries(path, doc, "dialogues"))
    systems = tuple(text for path, doc in documents.items() if "systems" in doc for text in _wordings(path.name, doc, "systems"))
    corpus = Corpus(questions, dialogues, systems)
    _check_unique(corpus)
    _check_split(corpus)
    return corpus


def _document(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise CorpusError(f"{path.name}: not valid YAML: {error}") from error
    if not isinstance(document, dict) or not set(document) <= {"questions", "dialogues", "systems"}:
        raise CorpusError(f"{path.name}: must be a mapping with the keys questions, dialogues and systems only")
    return document


def _entries(path: Path, document: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    entries = document.get(kind) or []
    if not isinstance(entries, list) or not all(isinstance(e, dict) and isinstance(e.get("id"), str) for e in entries):
        raise CorpusError(f"{path.name}: {kind} must be a list of mappings with an id each")
    return entries


def _question(path: Path, entry: dict[str, Any]) -> Question:
    return Question(entry["id"], path.stem, _exchange(f"{path.name}: {entry['id']}", entry, "questions"))


def _dialogue(path: Path, entry: dict[str, Any], questions: dict[str, Question]) -> Dialogue:
    where = f"{path.name}: {entry['id']}"
    first = questions.get(str(entry.get("after")))
    turns = entry.get("turns")
    if first is None:
        raise CorpusError(f"{where}: after names no question: {entry.get('after')!r}")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise CorpusError(f"{where}: turns must be a list of one or more mappings")
    exchanges = tuple(_exchange(f"{where}, turn {i}", turn, "turns") for i, turn in enumerate(turns, 1))
    return Dialogue(entry["id"], path.stem, first, exchanges)


def _exchange(where: str, entry: dict[str, Any], kind: str) -> Exchange:
    ask, held_out = _wordings(where, entry, "ask"), _wordings(where, entry, "held_out")
    answer = entry.get("answer")
    if len(ask) < MIN_WORDINGS[kind]:
        raise CorpusError(f"{where}: needs {MIN_WORDINGS[kind]} or more wordings in ask, has {len(ask)}")
    if not isinstance(answer, str) or not answer.strip():
        raise CorpusError(f"{where}: answer must be text")
    text = " ".join(answer.split())
    if len(text.split()) > MAX_ANSWER_WORDS:
        raise CorpusError(f"{where}: the answer has {len(text.split())} words, at most {MAX_ANSWER_WORDS} are allowed")
    return Exchange(ask, held_out, text)


def _wordings(where: str, entry: dict[str, Any], field: str) -> tuple[str, ...]:
    wordings = entry.get(field)
    if not isinstance(wordings, list) or not all(isinstance(w, str) and w.strip() for w in wordings):
        raise CorpusError(f"{where}: {field} must be a list of texts (quote each one)")
    return tuple(" ".join(w.split()) for w in wordings)


def _check_unique(corpus: Corpus) -> None:
    """Ids are unique, and no wording asks two questions (follow-ups may repeat: their context tells them apart)."""
    ids = Counter([q.id for q in corpus.questions] + [d.id for d in corpus.dialogues])
    for entry, count in ids.items():
        if count > 1:
            raise CorpusError(f"the id {entry} is used {count} times")
    owner: dict[str, Question] = {}
    for question in corpus.questions:
        for wording in (*question.exchange.ask, *question.exchange.held_out):
            other = owner.setdefault(key(wording), question)
            if other is not question and other.exchange.answer != question.exchange.answer:
                raise CorpusError(f"{question.topic}.yaml: {question.id}: {wording!r} also asks {other.topic}.yaml: {other.id}")


def _check_split(corpus: Corpus) -> None:
    """No held-out wording is a training wording anywhere, not even of another question."""
    held_out = corpus.held_out_keys()
    named = [(q.topic, q.id, q.exchange) for q in corpus.questions]
    named += [(d.topic, d.id, turn) for d in corpus.dialogues for turn in d.turns]
    for topic, entry, exchange in named:
        for wording in exchange.ask:
            if key(wording) in held_out:
                raise CorpusError(f"{topic}.yaml: {entry}: {wording!r} is held out, but also in an ask list")
