#!/usr/bin/env bash
# Runs a verb on TPUs of a GKE cluster through xpk (https://github.com/AI-Hypercomputer/xpk): puts this
# checkout into an image, queues NAME and waits for its end; xpk says where the logs are. After a
# preemption GKE starts it again, up to --restarts=N times (10), and it goes on.
#   bash launch/tpu_gke.sh VERB NAME SLICE CLUSTER ZONE [--restarts=N] [--ship=PATH ...] [--env-file=FILE] \
#       [--dry-run] [-- XPK'S FLAGS --] FLAGS...
#   bash launch/tpu_gke.sh delete NAME CLUSTER ZONE [--dry-run] [-- XPK'S FLAGS --]
# VERB: train, evaluate, t5x.train, t5x.eval, t5x.infer; FLAGS: its own, MODEL_DIR (or EVAL_OUTPUT_DIR) in
# a bucket. SLICE: v5e-16, v5p-64, ... PATH: a package, a gin file, data; it lies there as shipped/NAME,
# and packages are importable. FILE: NAME=VALUE lines (HF_TOKEN). XPK'S FLAGS: those of its `workload`
# verbs, such as --project=P --priority=high. `xpk cluster create` makes the cluster, once.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/cloud.sh
read_arguments "--restarts --ship --env-file" "$@"
verb=${words[0]:-}
case $verb,${#words[@]} in
  delete,4) ;;
  *,5) check_verb "$verb" ;;
  *)
    refuse "'${words[*]}'" "VERB NAME SLICE CLUSTER ZONE or delete NAME CLUSTER ZONE" \
      "see launch/tpu_gke.sh"
    ;;
esac
name=${words[1]} out=runs/launch/${words[1]} restarts=${option[--restarts]:-10}
at=("--cluster=${words[-2]}" "--zone=${words[-1]}") more=() env=()
for flag in "${passed[@]}"; do
  [[ $flag == --project=* ]] && at+=("$flag") || more+=("$flag")
done
if [ "$verb" != delete ]; then
  check_run "$verb" "$name"
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
  run xpk workload delete "--workload=$name" "${at[@]}" "${more[@]}"
  exit
fi
pack "$out/code"
run xpk workload create "--workload=$name" "${at[@]}" "--tpu-type=$type" \
  "--max-restarts=$restarts" "${env[@]}" "${more[@]}" --base-docker-image=python:3.12 \
  "--script-dir=$out/code" \
  "--command=bash launch/tpu_worker.sh run $verb$(printf ' %q' "${flags[@]}")"
run xpk workload list "--wait-for-job-completion=$name" "${at[@]}"
