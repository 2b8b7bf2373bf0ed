#!/usr/bin/env bash
# Runs a verb on a Cloud TPU slice: takes NAME or makes it, ships this checkout, runs on all workers, shows
# worker 0's log, leaves all logs in runs/launch/NAME. The same line again watches what still runs;
# after a preemption it makes the slice anew and goes on.
#   bash launch/tpu_pod.sh VERB NAME SLICE ZONE [--spot] [--queue] [--ship=PATH ...] [--env-file=FILE] \
#       [--dry-run] [-- GCLOUD'S FLAGS --] FLAGS...
#   bash launch/tpu_pod.sh stop|delete NAME ZONE [--queue] [--dry-run] [-- GCLOUD'S FLAGS --]
# VERB: train, evaluate, t5x.train, t5x.eval, t5x.infer; FLAGS: its own, MODEL_DIR (or EVAL_OUTPUT_DIR) in
# a bucket. SLICE: v5e-16, v5p-64, ...; --queue waits in line. PATH: a package, a gin file, data; it lies
# there as shipped/NAME, and packages are importable. FILE: NAME=VALUE lines (HF_TOKEN); nothing prints it.
# GCLOUD'S FLAGS: --project=P --reserved --network=N --tunnel-through-iap ..., each for the calls that have
# it; the word alpha among them takes gcloud's alpha commands.
# A slice of several workers wants `ssh-add ~/.ssh/google_compute_engine` once.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/cloud.sh
. launch/tpu_slice.sh
read_arguments "--spot --queue --ship --env-file" "$@"
verb=${words[0]:-}
case $verb,${#words[@]} in
  stop,3 | delete,3) ;;
  *,4) check_verb "$verb" ;;
  *) refuse "'${words[*]}'" "VERB NAME SLICE ZONE, stop|delete NAME ZONE" "see launch/tpu_pod.sh" ;;
esac
name=${words[1]} slice=${words[2]} zone=${words[-1]} spot=${option[--spot]:-} kind=tpu-vm
env_file=${option[--env-file]:-} out=runs/launch/$name worker="bash cot-flax/launch/tpu_worker.sh"
[ -z "${option[--queue]:-}" ] || kind=queued-resources
if [ "${#words[@]}" = 4 ]; then
  check_run "$verb" "$name"
  accelerator "$slice" > /dev/null
fi
[ -z "$env_file" ] || need_file "$env_file" --env-file
need_account
sort_passed

case $verb in
  stop) on all "$worker stop" ;;
  delete) remove ;;
esac
[ "${#words[@]}" = 4 ] || exit 0
make_ready
pack "$out/code"
run tar -czf "$out/code.tar.gz" -C "$out/code" .
copy "$out/code.tar.gz" cot-flax.tar.gz
[ -z "$env_file" ] || copy "$env_file" train.env
# While a run holds the lock, the code under it stays as it is.
on all "mkdir -p cot-flax && flock --nonblock --conflict-exit-code 0 cot-flax/train.lock \
sh -c 'rm -rf cot-flax/shipped && tar -xzf cot-flax.tar.gz -C cot-flax' && \
$worker start $verb$(printf ' %q' "${flags[@]}")"
code=0
on 0 "$worker watch" || code=$?
on all "cat cot-flax/train.log" "--output-directory=$out" || true # a preempted slice has none
[ "$code" = 0 ] || echo "tpu_pod.sh: ended with $code; logs in $out; the same line goes on" >&2
exit "$code"
