#!/usr/bin/env bash
# Trains on a Cloud TPU slice: takes NAME or makes it, ships this checkout, trains on all workers, shows
# worker 0's log, leaves all logs in runs/launch/NAME. The same line again watches a training that
# still runs; after a preemption it makes the slice anew and goes on from MODEL_DIR.
#   bash launch/tpu_pod.sh train NAME SLICE ZONE [--spot] [--queue] [--env-file=FILE] [--dry-run] FLAGS...
#   bash launch/tpu_pod.sh stop|delete NAME ZONE [--queue] [--dry-run]
# SLICE: v5e-16, v5p-64, ...; --queue waits in line for one. FLAGS: of `cot-flax train`, MODEL_DIR in a
# bucket. FILE: NAME=VALUE lines for the training (HF_TOKEN); it is copied, nothing prints it. The
# project is gcloud's. A slice of several workers wants `ssh-add ~/.ssh/google_compute_engine` once.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/cloud.sh
. launch/tpu_slice.sh
read_arguments "--spot --queue --env-file" "$@"
verb=${words[0]:-}
case $verb,${#words[@]} in
  train,4 | stop,3 | delete,3) ;;
  *) refuse "'${words[*]}'" "train NAME SLICE ZONE, stop|delete NAME ZONE" "see launch/tpu_pod.sh" ;;
esac
name=${words[1]} slice=${words[2]} zone=${words[-1]} spot=${option[--spot]:-} kind=tpu-vm
env_file=${option[--env-file]:-} out=runs/launch/$name worker="bash cot-flax/launch/tpu_worker.sh"
[ -z "${option[--queue]:-}" ] || kind=queued-resources
if [ "$verb" = train ]; then
  check_run "$name"
  accelerator "$slice" > /dev/null
fi
[ -z "$env_file" ] || need_file "$env_file" --env-file
need_account

case $verb in
  stop) on all "$worker stop" ;;
  delete) remove ;;
esac
[ "$verb" = train ] || exit 0
make_ready
run mkdir -p "$out"
pack "$out/code.tar.gz"
copy "$out/code.tar.gz" cot-flax.tar.gz
[ -z "$env_file" ] || copy "$env_file" train.env
# While a training holds the lock, the code under it stays as it is.
on all "mkdir -p cot-flax && flock --nonblock --conflict-exit-code 0 cot-flax/train.lock \
tar -xzf cot-flax.tar.gz -C cot-flax && $worker start$(printf ' %q' "${train_flags[@]}")"
code=0
on 0 "$worker watch" || code=$?
on all "cat cot-flax/train.log" "--output-directory=$out" || true # a preempted slice has none
[ "$code" = 0 ] || echo "tpu_pod.sh: ended with $code; logs in $out; the same line goes on" >&2
exit "$code"
