#!/usr/bin/env bash
# Sets up, then teaches the embedded world's student four ways (about ten minutes on two cores).
#   bash launch/demo.sh [--fast] [--seed N] [--out DIR]
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh
"${VENV:-.venv}/bin/cot-flax" demo "$@"
echo "for the next command: source ${VENV:-.venv}/bin/activate"
