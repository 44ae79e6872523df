"""Where a model's files are: the shipped one, a folder, or Hugging Face's cache and hub. Everything after works on a local folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from services.engine.generation import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

DEMO = Path(__file__).resolve().parents[4] / "models" / "demo"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def locate(model_name: str, progress: Callable[[str], None]) -> Path:
    """The folder of the model that MODEL_NAME names, downloaded if need be. Raises `BackendError`."""
    return local_folder(model_name) or _from_hub(model_name, progress)


def local_folder(model_name: str) -> Path | None:
    """The folder of a model that is the shipped one or a path; None is a Hugging Face id. Raises `BackendError`."""
    if model_name == "demo":
        return _checked(DEMO, "demo", cure="`make model` trains the demo model")
    path = Path(model_name).expanduser()
    if path.is_dir():
        return _checked(path, model_name, cure="give the folder that save_pretrained wrote")
    if model_name.startswith((".", "/", "~")):
        raise BackendError(f"MODEL_NAME={model_name}: no such folder; give a folder with config.json, a Hugging Face id, or demo")
    if not _HUB_ID.fullmatch(model_name):
        raise BackendError(f"MODEL_NAME={model_name}: neither a folder nor a Hugging Face id (owner/name)")
    return None


def problem_of(folder: Path) -> str:
    """What is missing in a folder for serving it, or nothing."""
    if not (folder / "config.json").is_file():
        return "no config.json"
    index = folder / _INDEX
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        return f"no {missing[0]}, which {_INDEX} names" if missing else ""
    if any(folder.glob("*.safetensors")):
        return ""
    pickles = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
    if pickles:
        return f"weights only as {pickles[0]}, a pickle, which may run any code"
    return "no weights (*.safetensors)"


def _checked(folder: Path, model_name: str, cure: str) -> Path:
    problem = problem_of(folder)
    if problem.endswith("code"):
        cure = "convert them to safetensors"
    if problem:
        raise BackendError(f"MODEL_NAME={model_name}: {folder} has {problem}; {cure}")
    return folder


def _from_hub(model_id: str, progress: Callable[[str], None]) -> Path:
    """A complete copy in the cache is used without asking the network."""
    try:
        cached = Path(snapshot_download(model_id, local_files_only=True))
        if not problem_of(cached) and any((cached / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            return cached
    except LocalEntryNotFoundError:
        pass
    progress(f"downloading {model_id}")
    try:
        return _checked(Path(snapshot_download(model_id, allow_patterns=_FILES)), model_id, cure="choose another model")
    except GatedRepoError as error:
        raise BackendError(f"MODEL_NAME={model_id}: a gated model; accept its terms at Hugging Face and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise BackendError(f"MODEL_NAME={model_id}: no such folder, nor such a model on Hugging Face (or HF_TOKEN is needed)") from error
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "Hugging Face cannot be reached"
        raise BackendError(f"MODEL_NAME={model_id}: not in the cache and {why}; download it first, or give a folder or demo") from error
