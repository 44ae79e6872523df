"""Ask the saved model every held-out wording: `python -m models.demo.evaluate` (`make model-eval`).

Owns the published figures: the share of answers that equal the reference once normalised, and the share that stop by
themselves, greedy and at temperature 0.7. Unlike the score during training, this one generates, as a server would.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from models.demo import corpus
from models.demo.scoring import Case, cases

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MODEL_DIR = Path(__file__).parent
TEMPERATURE = 0.7
SEED = 1
MAX_NEW_TOKENS = 160
BATCH_ROWS = 64
REQUIRED_GREEDY_SHARE = 0.85


@dataclass(frozen=True)
class Outcome:
    """What the model answered to a case, and whether it stopped by itself."""

    case: Case
    answer: str
    stopped: bool

    @property
    def is_right(self) -> bool:
        """Equal to the reference apart from case, punctuation and white space."""
        return corpus.key(self.answer) == corpus.key(self.case.answer)


def ask(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tests: Sequence[Case], temperature: float) -> list[Outcome]:
    """Answers to all cases, in batches of like length; temperature 0 is greedy decoding."""
    # top_p and top_k at their neutral values: the temperature is all that is tried here.
    sampling = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0} if temperature else {"do_sample": False}
    waiting = sorted(tests, key=lambda case: sum(len(message.content) for message in case.messages))
    outcomes = []
    for start in range(0, len(waiting), BATCH_ROWS):
        batch = waiting[start : start + BATCH_ROWS]
        outcomes += _ask_batch(model, tokenizer, batch, sampling)
        print(f"\r{len(outcomes)}/{len(waiting)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return outcomes


def _ask_batch(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, batch: Sequence[Case], sampling: dict[str, Any]
) -> list[Outcome]:
    conversations = [[{"role": m.role, "content": m.content} for m in case.messages] for case in batch]
    prompts = tokenizer.apply_chat_template(conversations, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        generated = model.generate(**prompts, **sampling, max_new_tokens=MAX_NEW_TOKENS)
    answers = generated[:, prompts["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    stopped = (answers == tokenizer.eos_token_id).any(dim=1).tolist()
    return [Outcome(*row) for row in zip(batch, texts, stopped, strict=True)]


def summarise(greedy: Sequence[Outcome], sampled: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row per corpus file and one for the total."""
    topics = sorted({outcome.case.topic for outcome in greedy})
    rows = []
    for topic in (*topics, "total"):
        chosen = [[o for o in outcomes if topic in (o.case.topic, "total")] for outcomes in (greedy, sampled)]
        rows.append(
            {
                "topic": topic,
                "wordings": len(chosen[0]),
                "greedy": _share(chosen[0], lambda o: o.is_right),
                f"temperature {TEMPERATURE}": _share(chosen[1], lambda o: o.is_right),
                "stopped": _share([*chosen[0], *chosen[1]], lambda o: o.stopped),
            }
        )
    return rows


def _share(outcomes: Sequence[Outcome], holds: Callable[[Outcome], bool]) -> float:
    return round(sum(holds(outcome) for outcome in outcomes) / len(outcomes), 4)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Shares as percentages, one line per corpus file."""
    print(f"{'':15}" + "".join(f"{name:>17}" for name in list(rows[0])[1:]))
    for row in rows:
        cells = [f"{value:>17.1%}" if isinstance(value, float) else f"{value:>17}" for value in list(row.values())[1:]]
        print(f"{row['topic']:15}" + "".join(cells))


def print_failures(title: str, outcomes: Sequence[Outcome]) -> None:
    """Each wrong answer with what was asked and wanted."""
    print(f"\nFailures, {title}")
    for outcome in sorted((o for o in outcomes if not o.is_right), key=lambda o: (o.case.topic, o.case.id)):
        print(f"- {outcome.case.topic}.yaml: {outcome.case.id}: {outcome.case.messages[-1].content}")
        print(f"    wanted: {outcome.case.answer}\n    got:    {outcome.answer}")


def main() -> int:
    """Evaluate, print, write eval.json; 1 if too few greedy answers are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="folder with the model's files")
    parser.add_argument("--out", type=Path, default=MODEL_DIR / "eval.json", help="file for the figures")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of PyTorch")
    parser.add_argument("--failures", action="store_true", help="list every wrong answer")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tests = cases(corpus.load())
    greedy, sampled = (ask(model, tokenizer, tests, temperature) for temperature in (0.0, TEMPERATURE))
    rows = summarise(greedy, sampled)
    print_table(rows)
    if options.failures:
        print_failures("greedy", greedy)
        print_failures(f"temperature {TEMPERATURE}", sampled)
    options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0 if rows[-1]["greedy"] >= REQUIRED_GREEDY_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
