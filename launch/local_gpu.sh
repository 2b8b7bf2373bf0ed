#!/usr/bin/env bash
# Sets up and runs a command of cot-flax on this machine's GPUs, all in one process; the same line goes
# on from MODEL_DIR. CUDA_VISIBLE_DEVICES chooses among them.
#   bash launch/local_gpu.sh [--dry-run] train --gin_file=experiments/world_base.gin \
#       --gin.MODEL_DIR="'runs/base'" --gin.MESH_DATA=0
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh
[ "${1:-}" != --dry-run ] || { dry_run=yes && shift; }
[ $# -gt 0 ] || refuse "no command" "one of cot-flax's" "see launch/local_gpu.sh"
need nvidia-smi "install NVIDIA's driver, or use launch/local_cpu.sh"
run bash launch/setup.sh gpu
# Named, a GPU that JAX cannot use ends the run; unnamed, the CPU would take its place.
run env JAX_PLATFORMS=cuda,cpu "${VENV:-.venv}/bin/cot-flax" "$@"
