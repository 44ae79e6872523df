"""A tiny random model with a byte-level tokenizer, made in seconds, and a backend over it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from services.engine.backends.transformers.backend import TransformersBackend
from services.settings import EngineSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SPECIAL = ["<pad>", "<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role not in ('system', 'user', 'assistant', 'tool') %}"
    "{{ raise_exception('unknown role ' ~ m.role) }}{% endif %}<|{{ m.role }}|>{{ m.content | trim }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, behind the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="<|end|>", additional_special_tokens=SPECIAL[3:]
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def make_config(**changes: Any) -> LlamaConfig:
    """Two layers with grouped heads; weights spread so far that the best token is clear."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    rest = {"vocab_size": 263, "max_position_embeddings": 1024, "initializer_range": 0.25, "eos_token_id": 2, "bos_token_id": 1}
    return LlamaConfig(**{**sizes, **rest, **changes})


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """More compute threads than idle cores cost a factor, here as in production."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    LlamaForCausalLM(make_config()).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def engine_settings(model_folder: Path) -> EngineSettings:
    """Float32 on one thread, eight slots."""
    return EngineSettings(model_name=str(model_folder), device="cpu", dtype="float32", num_threads=1, max_concurrent_requests=8)


@pytest_asyncio.fixture
async def backend(engine_settings: EngineSettings) -> AsyncIterator[TransformersBackend]:
    """A started backend over the tiny model."""
    backend = TransformersBackend(engine_settings)
    await backend.start(lambda _: None)
    yield backend
    await backend.stop()
