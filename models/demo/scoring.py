"""Held-out wordings as test cases, and a fast score of a model in training.

Owns what counts as a case: every held-out question asked alone, every held-out follow-up asked within its dialogue.
It must not train and must not print.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from models.demo.conversations import PAD, Encoded, Message, encode
from models.demo.tokens import tokenize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from models.demo.corpus import Corpus


@dataclass(frozen=True)
class Case:
    """A conversation that ends with a held-out wording, and the answer that the corpus gives to it."""

    topic: str
    id: str
    messages: tuple[Message, ...]
    answer: str


def cases(corpus: Corpus) -> list[Case]:
    """All held-out wordings; a follow-up comes after the first wording and the true answer of each earlier turn."""
    found = [
        Case(q.topic, q.id, (Message("user", wording),), q.exchange.answer) for q in corpus.questions for wording in q.exchange.held_out
    ]
    for dialogue in corpus.dialogues:
        before: tuple[Message, ...] = ()
        for exchange in (dialogue.first.exchange, *dialogue.turns):
            if before:
                found += [
                    Case(dialogue.topic, dialogue.id, (*before, Message("user", wording)), exchange.answer) for wording in exchange.held_out
                ]
            before = (*before, Message("user", exchange.ask[0]), Message("assistant", exchange.answer))
    return found


def pad(rows: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (rows, length), padded on the right, and the weights of predicting each of them (rows, length)."""
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), PAD)
    weights = torch.zeros(len(rows), length)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        weights[i, : len(row.weights)] = torch.tensor(row.weights)
    return ids, weights


def forced_score(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tests: Sequence[Case]) -> float:
    """Share of cases whose answer the model writes greedily, found without generating.

    Greedy decoding writes exactly the reference if, and only if, every token of the reference is the likeliest one after
    those before it. One forward pass over the finished conversation shows that.
    """
    rows = []
    for case in tests:
        finished = encode((*case.messages, Message("assistant", case.answer)), lambda text: tokenize(tokenizer, text))
        # Only the last answer counts: the earlier ones of a dialogue are given.
        last = len(finished.ids) - len(tokenize(tokenizer, case.answer)) - 1
        rows.append(Encoded(finished.ids, (0.0,) * last + finished.weights[last:]))
    rows.sort(key=lambda row: len(row.ids))
    right = 0
    model.eval()
    for start in range(0, len(rows), 32):
        ids, weights = pad(rows[start : start + 32])
        with torch.inference_mode():
            likeliest = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        wrong = (likeliest != ids[:, 1:]) & (weights[:, 1:] > 0)
        right += int((~wrong.any(dim=1)).sum())
    model.train()
    return right / len(rows)
