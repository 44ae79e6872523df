#!/usr/bin/env bash
# Everything that can be judged without starting a service, quickest first; ends at the first failure.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin

step() { echo "check: $1"; shift; "$@"; }

step "ruff" "$bin/ruff" check --quiet .
step "format" "$bin/ruff" format --check --quiet .
step "yamllint" "$bin/yamllint" --strict .
mapfile -t scripts < <(git ls-files -co --exclude-standard 'scripts/*.sh' .ci/run)
step "shellcheck" "$bin/shellcheck" "${scripts[@]}"
step "locks in step with pyproject.toml" scripts/lock.sh --check
step "envoy's files" "$bin/python" -m services.edge validate
step "sizes, imports, generated files" "$bin/python" -m pytest -q tests/config/test_structure.py
step "dashboards as the code makes them" "$bin/python" -m grafana.build --check
step "types" "$bin/mypy"
