"""Loading: what can be served, and the one line that says why not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, MistralConfig, MistralForCausalLM, T5Config

from services.engine.backends import transformers as engine
from services.engine.backends.huggingface.choosing import choose_dtype
from services.engine.backends.transformers import loading
from services.engine.backends.transformers.forward import Forward
from services.engine.generation import BackendError
from tests.unit.engine.backends.conftest import make_config, make_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from services.settings import EngineSettings


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be broken."""
    return shutil.copytree(model_folder, tmp_path / "model")


def load(settings: EngineSettings, **changes: Any) -> loading.Loaded:
    """Loads with some settings changed."""
    values = {name: getattr(settings, name) for name in settings.__struct_fields__}
    return loading.load(type(settings)(**{**values, **changes}), lambda _: None)


def test_a_folder_is_loaded_and_described(engine_settings: EngineSettings) -> None:
    """Context, vocabulary, device, dtype and end tokens come from the model."""
    loaded = load(engine_settings)
    assert loaded.info == type(loaded.info)(1024, 263, "cpu", "float32")
    assert loaded.eos_token_ids == {2}
    assert load(engine_settings, max_model_len=100, dtype="bfloat16").info == type(loaded.info)(100, 263, "cpu", "bfloat16")


def without(name: str) -> Callable[[Path], None]:
    """Removes a file."""
    return lambda folder: (folder / name).unlink()


def with_config(**changes: Any) -> Callable[[Path], None]:
    """Changes config.json."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def only_pickle(folder: Path) -> None:
    """Leaves pickled weights alone."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def shard_missing(folder: Path) -> None:
    """An index that names a shard which is not there."""
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}')


def truncated(folder: Path) -> None:
    """Half of the weights' file, as a broken download leaves it."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (without("config.json"), "has no config.json; give the folder that save_pretrained wrote"),
        (without("model.safetensors"), "has no weights"),
        (without("tokenizer.json"), "MODEL_NAME="),
        (only_pickle, "pytorch_model.bin, a pickle, which may run any code; convert them to safetensors"),
        (shard_missing, "has no model-2.safetensors"),
        (truncated, "cannot be loaded: SafetensorError: "),
        (with_config(num_hidden_layers=3), "weights do not fit its config.json"),
        (with_config(vocab_size=300), "weights do not fit its config.json .2 missing or of another shape, first lm_head.weight"),
        (with_config(model_type="unheard"), "unheard"),
        (with_config(layer_types=["full_attention", "sliding_attention"], sliding_window=8), "sliding_attention"),
    ],
    ids=["no config", "no weights", "no tokenizer", "pickle", "shard", "truncated", "layers", "shape", "type", "sliding"],
)
def test_a_folder_that_cannot_be_served_is_one_readable_line(
    folder: Path, engine_settings: EngineSettings, damage: Callable[[Path], None], line: str
) -> None:
    """Whatever is wrong with a model's files, the start ends with one line that names MODEL_NAME."""
    damage(folder)
    with pytest.raises(BackendError, match=line) as caught:
        load(engine_settings, model_name=str(folder))
    assert f"MODEL_NAME={folder}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("./nowhere", "no such folder; give a folder with config.json, a Hugging Face id, or demo"),
        ("not a name", "neither a folder nor a Hugging Face id"),
        ("a/b/c", "neither a folder nor a Hugging Face id"),
    ],
)
def test_a_model_that_is_not_found_is_one_readable_line(engine_settings: EngineSettings, name: str, line: str) -> None:
    """A wrong path or id says what may be given."""
    with pytest.raises(BackendError, match=f"^MODEL_NAME={name}: {line}"):
        load(engine_settings, model_name=name)


@pytest.mark.timeout(300)
def test_offline_nothing_waits_for_the_network() -> None:
    """With HF_HUB_OFFLINE a model that is not in the cache is refused at once, with what to do."""
    code = (
        "from services.engine.backends.huggingface.locating import locate\n"
        "from services.engine.generation import BackendError\n"
        "try: locate('someone/not-cached', print)\n"
        "except BackendError as error: print(error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=290).stdout
    assert "MODEL_NAME=someone/not-cached: not in the cache and HF_HUB_OFFLINE is set" in told


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"max_model_len": 2048}, "MAX_MODEL_LEN=2048: the model's context is 1024 tokens; set at most 1024"),
        ({"device": "cuda:7"}, "DEVICE=cuda:7: "),
    ],
)
def test_settings_that_the_machine_or_model_cannot_meet_are_refused(engine_settings: EngineSettings, changes: Any, line: str) -> None:
    """The line names the setting and what is possible."""
    with pytest.raises(BackendError, match=line):
        load(engine_settings, **changes)


def test_auto_dtype_takes_what_the_processor_is_fast_at(tmp_path: Path) -> None:
    """Bfloat16 only where the processor computes in it; the checkpoint's dtype on an accelerator."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : fpu avx2 avx512f\n")
    assert choose_dtype("auto", torch.device("cpu"), cpuinfo) == torch.float32
    cpuinfo.write_text("flags : fpu avx512_bf16 amx_tile\n")
    assert choose_dtype("auto", torch.device("cpu"), cpuinfo) == torch.bfloat16
    assert choose_dtype("auto", torch.device("cpu"), tmp_path / "none") == torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == "auto"
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16


def test_an_encoder_decoder_model_is_refused(engine_settings: EngineSettings, tmp_path: Path, model_folder: Path) -> None:
    """A translation model is not a causal language model."""
    T5Config(num_layers=1, d_model=8).save_pretrained(tmp_path)
    shutil.copy(model_folder / "model.safetensors", tmp_path)
    with pytest.raises(BackendError, match="encoder-decoder"):
        load(engine_settings, model_name=str(tmp_path))


@pytest.mark.parametrize(
    "model",
    [
        GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=263, n_positions=64)),
        MistralForCausalLM(MistralConfig(**{**make_config().to_diff_dict(), "model_type": "mistral", "sliding_window": None})),
        LlamaForCausalLM(make_config(attention_bias=True, num_key_value_heads=4)),
    ],
    ids=lambda model: type(model).__name__,
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_architectures_compute_the_same_in_a_batch_as_alone(model: Any, attention: str) -> None:
    """Models with learned positions, grouped heads and either attention code pass the self-check of every start."""
    model.eval().set_attn_implementation(attention)
    with torch.inference_mode():
        Forward(model, 4, 64).check()


def test_a_model_that_is_wrong_in_a_batch_is_refused() -> None:
    """A model that ignores masks would answer one client by another's text: the self-check stops it."""
    model = LlamaForCausalLM(make_config()).eval()
    original = model.model.forward
    model.model.forward = lambda **given: original(**{**given, "attention_mask": None})
    with torch.inference_mode(), pytest.raises(BackendError, match="computes differently in a batch than alone"):
        Forward(model, 4, 64).check()


@pytest.mark.timeout(300)
def test_preimport_makes_a_fork_safe() -> None:
    """A parent that has imported everything has one thread, and nothing was imported before it was asked to."""
    code = (
        "import os, sys\n"
        "from services.engine.backends.transformers import preimport\n"
        "assert 'torch' not in sys.modules\n"
        "preimport()\n"
        "assert 'transformers.models.llama.modeling_llama' in sys.modules\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=290).stdout
    assert told.split() == ["1"]


def test_where_a_fork_is_possible(engine_settings: EngineSettings) -> None:
    """On the processor a pod may be forked, on a GPU not."""
    assert engine.runs_on_cpu(engine_settings)
    assert not engine.runs_on_cpu(type(engine_settings)(device="cuda"))


def test_the_tiny_tokenizer_is_complete() -> None:
    """The fixture's vocabulary covers the model's."""
    assert len(make_tokenizer()) == 263
