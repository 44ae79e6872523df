"""Train the demo model from nothing: `python -m models.demo.train` (`make model`), 40 minutes on two cores.

Owns the architecture, the optimiser and the files of the finished model. Float32 on the processor; one seed gives one
model on one machine and version of PyTorch.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.demo import corpus as corpus_module
from models.demo.conversations import BEGIN, END, PAD, Encoded, Head, Renderer, batches
from models.demo.optimiser import Optimiser
from models.demo.scoring import Case, cases, forced_score, pad
from models.demo.tokens import CONTEXT_TOKENS, save_tokenizer, tokenize, train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from models.demo.corpus import Corpus

OUT = Path(__file__).parent
UNKNOWN_ID = "unknown-nonsense"


@dataclass(frozen=True)
class Plan:
    """How one run trains; the defaults are those of the published model."""

    steps: int = 1000
    batch_tokens: int = 4096
    peak_rate: float = 2e-3
    matrix_factor: float = 2.0
    warmup_steps: int = 50
    final_share: float = 0.02
    weight_decay: float = 0.1
    max_norm: float = 1.0
    embedding_dropout: float = 0.1
    score_every: int = 100
    seed: int = 1

    def rate(self, step: int) -> float:
        """Learning rate of a step: a linear warm-up, then a cosine down to `final_share` of the peak."""
        if step < self.warmup_steps:
            return self.peak_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.peak_rate * (self.final_share + (1 - self.final_share) * (1 + math.cos(math.pi * done)) / 2)


def build_model(vocabulary: int) -> LlamaForCausalLM:
    """A Llama of about 6 million parameters with random weights."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=CONTEXT_TOKENS,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BEGIN,
        eos_token_id=END,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def training_batches(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, plan: Plan) -> Iterator[list[Encoded]]:
    """Batches of encoded random conversations without end."""
    rng = random.Random(plan.seed)
    known: dict[str, list[int]] = {}

    def ids(text: str) -> list[int]:
        # Answers and system prompts come again and again; wordings hardly ever do.
        if text not in known:
            known[text] = tokenize(tokenizer, text)
        return known[text]

    unknown = UNKNOWN_ID if any(q.id == UNKNOWN_ID for q in corpus.questions) else None
    return batches(Renderer(corpus, rng, unknown).rows(ids, Head()), rng, plan.batch_tokens)


def loss_of(model: LlamaForCausalLM, batch: list[Encoded], dropout: float) -> torch.Tensor:
    """Weighted mean cross-entropy of the answers' tokens; only their positions pass the output layer."""
    ids, weights = pad(batch)
    embedded = functional.dropout(model.model.embed_tokens(ids), dropout)
    # Padding is on the right and attention looks left, so that no mask is needed.
    hidden = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    wanted = weights[:, 1:] > 0
    logits = model.lm_head(hidden[:, :-1][wanted])
    losses = functional.cross_entropy(logits, ids[:, 1:][wanted], reduction="none")
    kept = weights[:, 1:][wanted]
    return (losses * kept).sum() / kept.sum()


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: Corpus, plan: Plan, out: Path) -> None:
    """Run the plan; score on held-out wordings and save every `score_every` steps and at the end."""
    optimiser = Optimiser(model.named_parameters(), plan.weight_decay, plan.matrix_factor)
    source = training_batches(corpus, tokenizer, plan)
    tests = cases(corpus)
    progress = Progress(plan)
    model.train()
    for step in range(plan.steps):
        batch = next(source)
        loss = loss_of(model, batch, plan.embedding_dropout)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.max_norm)
        optimiser.step(plan.rate(step))
        progress.add(step, loss.item(), sum(len(row.ids) for row in batch))
        if (step + 1) % plan.score_every == 0 or step + 1 == plan.steps:
            progress.scored(step, checkpoint(model, tokenizer, tests, out))


def checkpoint(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tests: list[Case], out: Path) -> float:
    """Save the model as it is now and return its greedy score on the held-out wordings."""
    save(model, tokenizer, out)
    return forced_score(model, tokenizer, tests)


class Progress:
    """Prints a line every 10 steps and one for each score."""

    def __init__(self, plan: Plan) -> None:
        """Start the clock."""
        self._plan = plan
        self._began = time.monotonic()
        self._tokens = 0
        self._loss = 0.0

    def add(self, step: int, loss: float, tokens: int) -> None:
        """Count one step; the printed loss is a moving average."""
        self._tokens += tokens
        self._loss = loss if step == 0 else 0.95 * self._loss + 0.05 * loss
        if (step + 1) % 10 == 0:
            elapsed = time.monotonic() - self._began
            left = elapsed / (step + 1) * (self._plan.steps - step - 1)
            print(
                f"step {step + 1}/{self._plan.steps}  loss {self._loss:.3f}  rate {self._plan.rate(step):.1e}  "
                f"{self._tokens / elapsed:.0f} tokens/s  {elapsed / 60:.1f} min, {left / 60:.1f} min left",
                flush=True,
            )

    def scored(self, step: int, score: float) -> None:
        """Print the share of held-out wordings answered exactly."""
        print(f"step {step + 1}: {score:.1%} of the held-out wordings are answered exactly (greedy)", flush=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write all files of the model as bfloat16; each is replaced at once, so that a reader never sees half of one."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".saving-") as name:
        staging = Path(name)
        rounded = copy.deepcopy(model).to(torch.bfloat16)
        rounded.generation_config = GenerationConfig(
            do_sample=True, temperature=0.7, top_p=0.95, bos_token_id=BEGIN, eos_token_id=END, pad_token_id=PAD, max_new_tokens=256
        )
        rounded.save_pretrained(staging)
        save_tokenizer(tokenizer, staging)
        _say_rope_theta(staging / "config.json")
        for path in sorted(staging.iterdir()):
            path.chmod(0o644)
            path.replace(out / path.name)


def _say_rope_theta(path: Path) -> None:
    """Repeat rope_theta at the top of the configuration, where transformers 4 and engines built on it look for it."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Train with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=Plan.steps, help="optimiser steps")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the model's files")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of PyTorch")
    parser.add_argument("--seed", type=int, default=Plan.seed, help="seed of weights, conversations and dropout")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    corpus = corpus_module.load()
    tokenizer = train_tokenizer(corpus)
    model = build_model(len(tokenizer))
    print(f"{len(corpus.questions)} questions, {len(corpus.dialogues)} dialogues, {model.num_parameters():,} parameters", flush=True)
    train(model, tokenizer, corpus, Plan(steps=options.steps, seed=options.seed), options.out)


if __name__ == "__main__":
    main()
