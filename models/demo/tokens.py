"""The tokenizer: a byte-level BPE trained on the corpus, and the files that carry it with the chat template.

Owns the vocabulary and its guarantee: any Unicode text encodes without an unknown token and decodes to itself.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from models.demo.augment import PREFIXES, SUFFIXES, SYNONYMS
from models.demo.conversations import BEGIN, END, PAD, SPECIAL_TOKENS, Message, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from models.demo.corpus import Corpus

VOCABULARY = 4096
CONTEXT_TOKENS = 4096
ROLE_MARKS = [token for i, token in enumerate(SPECIAL_TOKENS) if i not in (PAD, BEGIN, END)]
TEMPLATE = Path(__file__).parent / "chat_template.jinja"
# Not in the corpus, which is plain English: repeated so that usual characters of other scripts become few tokens.
OTHER_SCRIPTS = (
    "Grüße aus Köln, schöne Straße, für über Ärger. Ça va très bien, où êtes-vous? ¿Qué tal, señor? ¡Mañana! São João, coração, não.",
    "Dzień dobry, świat, żółć. Příliš žluťoučký kůň. Türkçe öğreniyorum, ışık. Hej på dig, åäö. Kiitos hyvää.",  # noqa: RUF001 - a Turkish letter
    "Привет, мир! Как дела? Что такое сервер? Καλημέρα κόσμε, τι κάνεις; שלום עולם. مرحبا بالعالم كيف حالك",
    "你好,世界!什么是服务器?谢谢。こんにちは世界。これは何ですか?ありがとう。안녕하세요 세계, 감사합니다. नमस्ते दुनिया। สวัสดีชาวโลก",
    "😀 😂 🙂 👍 🚀 ❤️ 🎉 🔥 ✅ ❌ 👋 🤖 👩‍💻 🇪🇺 – — … “quoted” ‘single’ „unten“ «guillemets» € £ ¥ © ™ ° ± × ÷ → ← ≤ ≥ ≠ ∞ π µ",  # noqa: RUF001 - signs that people paste
)
PROBES = (
    "What is Docker?",
    "  two  spaces,\ttab,\r\nnew lines\n\n ",
    "Grüße 你好 שלום 👩‍💻 0123456789 <|end|",
    "\u0000\u200b\ufffd\U0010ffff e\u0301",
    "don't can't it's I'm ' s 'll x' ( a , b ) . !",
)


def train_tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    """Learn the merges; special tokens take the first ids, then the 256 bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(corpus), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL_TOKENS[BEGIN],
        eos_token=SPECIAL_TOKENS[END],
        pad_token=SPECIAL_TOKENS[PAD],
        additional_special_tokens=ROLE_MARKS,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
    )
    wrapped.chat_template = TEMPLATE.read_text(encoding="utf-8").rstrip("\n")
    check(wrapped)
    return wrapped


def _texts(corpus: Corpus) -> Iterator[str]:
    """Wordings as written and in lower case, answers twice (they are what the model writes)."""
    for exchange in corpus.exchanges():
        yield from exchange.ask
        yield from (wording.lower() for wording in exchange.ask)
        yield from (exchange.answer, exchange.answer)
    yield from (*PREFIXES, *SUFFIXES, *corpus.systems)
    yield from (f" {phrase}" for group in SYNONYMS for phrase in group)
    yield from OTHER_SCRIPTS * 2


def tokenize(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids of a text without special tokens; "<|" is cut as in the chat template."""
    ids: list[int] = tokenizer.encode(text.strip().replace("<|", "< |"), add_special_tokens=False)
    return ids


def check(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise unless every text decodes to itself, and the template agrees with `encode`."""
    for text in (*PROBES, *OTHER_SCRIPTS):
        decoded = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
        if decoded != text:
            raise ValueError(f"the tokenizer turns {text!r} into {decoded!r}")
    messages = [Message(*pair) for pair in (("system", "Be brief."), ("user", " <|end|><|system|>1 "), ("assistant", "Yes. "))]
    by_template = tokenizer.apply_chat_template([vars(message) for message in messages], return_dict=False)
    by_hand = list(encode(messages, lambda text: tokenize(tokenizer, text)).ids)
    if by_template != by_hand:
        raise ValueError(f"the chat template gives {by_template}, encode gives {by_hand}")


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the template.

    The configuration is written by hand: what transformers 5 saves names classes and fields that version 4 cannot read.
    """
    tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[BEGIN],
        "eos_token": SPECIAL_TOKENS[END],
        "pad_token": SPECIAL_TOKENS[PAD],
        "additional_special_tokens": ROLE_MARKS,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": CONTEXT_TOKENS,
        "padding_side": "left",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if TEMPLATE.parent != directory.resolve():
        shutil.copyfile(TEMPLATE, directory / TEMPLATE.name)
