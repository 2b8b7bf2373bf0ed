#!/usr/bin/env bash
# Trains several times in turn, each with its own gin bindings and MODEL_DIR. The same line goes on where
# it stopped: a training that has ended ends again at once. One that fails does not stop the others.
#   bash launch/sweep.sh [--dry-run] FOLDER BINDINGS... -- COMMAND...
#   bash launch/sweep.sh runs/lr LEARNING_RATE=1e-2 "LEARNING_RATE=1e-3; WARMUP_STEPS=50" -- \
#       bash launch/local_cpu.sh train --gin_file=experiments/world_base.gin
# COMMAND: any that takes the flags of `cot-flax train`, such as tpu_pod.sh; FOLDER may be in a bucket.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
[ "${1:-}" != --dry-run ] || { dry_run=yes && shift; }
folder=${1:-} points=() failed=()
shift || true
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  points+=("$1")
  shift
done
if [ $# -lt 2 ] || [ ${#points[@]} = 0 ]; then
  refuse "no FOLDER, BINDINGS or COMMAND" "FOLDER BINDINGS... -- COMMAND..." "see launch/sweep.sh"
fi
shift

declare -A seen
for point in "${points[@]}"; do
  name=$(tr -cs 'A-Za-z0-9.=+-' _ <<< "$point") name=${name%_}
  [ -z "${seen[$name]:-}" ] ||
    refuse "two trainings in $folder/$name" "BINDINGS that differ" "leave one out"
  seen[$name]=yes flags=()
  IFS=';' read -ra bindings <<< "$point"
  for binding in "${bindings[@]}"; do
    flags+=("--gin.${binding# }")
  done
  run "$@" "${flags[@]}" "--gin.MODEL_DIR='$folder/$name'" || failed+=("$name")
done
[ ${#failed[@]} = 0 ] || {
  echo "sweep.sh: failed: ${failed[*]}" >&2
  exit 1
}
