#!/usr/bin/env bash
# Sets up, then teaches the embedded world's student four ways (about ten minutes on two cores).
#   bash launch/demo.sh [--fast] [--seed N] [--out DIR]
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh dev
# Without these glibc gives every step's buffers back to the kernel and asks for them again.
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296
exec "${VENV:-.venv}/bin/cot-flax" demo "$@"
