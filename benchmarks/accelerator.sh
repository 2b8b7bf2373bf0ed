#!/usr/bin/env bash
# Measures cot-flax on one accelerator in under 10 minutes: correctness first, then speed.
#   bash benchmarks/accelerator.sh [--seconds 570] [--out FOLDER] [--only STAGE ...] [--tiny]
# Needs this checkout and a Python (PYTHON, else python3) with jax, flax, optax, orbax-checkpoint,
# etils, sentencepiece and tokenizers; torch and transformers for the peers. No installation, no
# TensorFlow, no network. Made for one H100 or H200 with Python 3.12 and jax 0.11; without an
# accelerator everything runs at a tiny size, to see that it runs.
# Comes back: tables in Markdown on standard output, and accelerator-<device>.json in --out (else in
# $OUT, else benchmarks/results), which has each figure as soon as it is there: what is cut off
# leaves what it measured. Exit code 1 where a check of correctness failed.
# Whoever has an accelerator runs it, commits the JSON under benchmarks/results, and writes its
# tables into docs/performance.md. benchmarks/accelerator/__main__.py has the stages and their time.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m accelerator --out "${OUT:-benchmarks/results}" "$@"
