#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster through xpk (https://github.com/AI-Hypercomputer/xpk): puts this
# checkout into an image, queues NAME and waits for its end; xpk says where the logs are. After a
# preemption GKE starts it again, up to --restarts=N times (10), and it goes on from MODEL_DIR.
#   bash launch/tpu_gke.sh train NAME SLICE CLUSTER ZONE [--restarts=N] [--env-file=FILE] [--dry-run] FLAGS...
#   bash launch/tpu_gke.sh delete NAME CLUSTER ZONE [--dry-run]
# SLICE: v5e-16, v5p-64, ...; FLAGS: of `cot-flax train`, MODEL_DIR in a bucket. FILE: NAME=VALUE lines
# for the training (HF_TOKEN). The project is gcloud's. `xpk cluster create` makes the cluster, once.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/cloud.sh
read_arguments "--restarts --env-file" "$@"
verb=${words[0]:-}
case $verb,${#words[@]} in
  train,5 | delete,4) ;;
  *)
    refuse "'${words[*]}'" "train NAME SLICE CLUSTER ZONE or delete NAME CLUSTER ZONE" \
      "see launch/tpu_gke.sh"
    ;;
esac
name=${words[1]} out=runs/launch/${words[1]} restarts=${option[--restarts]:-10}
at=("--cluster=${words[-2]}" "--zone=${words[-1]}") env=()
if [ "$verb" = train ]; then
  check_run "$name"
  type=$(accelerator "${words[2]}")
  [[ $restarts =~ ^[0-9]+$ ]] || refuse "--restarts=$restarts" "a whole number" "correct it"
fi
if [ -n "${option[--env-file]:-}" ]; then
  need_file "${option[--env-file]}" --env-file
  env=("--env-file=${option[--env-file]}")
fi
need xpk "run: pip install xpk"
need_account

if [ "$verb" = delete ]; then
  run xpk workload delete "--workload=$name" "${at[@]}"
  exit
fi
run rm -rf "$out/code"
run mkdir -p "$out/code"
pack "$out/code.tar.gz"
run tar -xzf "$out/code.tar.gz" -C "$out/code"
run xpk workload create "--workload=$name" "${at[@]}" "--tpu-type=$type" \
  "--max-restarts=$restarts" "${env[@]}" --base-docker-image=python:3.12 "--script-dir=$out/code" \
  "--command=bash launch/setup.sh tpu && \
JAX_PLATFORMS=tpu,cpu .venv/bin/cot-flax train$(printf ' %q' "${train_flags[@]}")"
run xpk workload list "--wait-for-job-completion=$name" "${at[@]}"
