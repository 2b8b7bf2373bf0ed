#!/usr/bin/env bash
# One worker of tpu_pod.sh or tpu_gke.sh. What `start` starts outlives the connection that did.
#   bash launch/tpu_worker.sh run VERB FLAGS...     sets up and runs the verb
#   bash launch/tpu_worker.sh start VERB FLAGS...   in the background, unless the same already runs
#   bash launch/tpu_worker.sh watch                 shows the log to its end; exits as the run did
#   bash launch/tpu_worker.sh stop
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh
. launch/verbs.sh

runs() { ! flock --shared --nonblock train.lock true; }

make_ready() { # VERB: sets `command`
  find_python
  set_up tpu "$1"
  find_shipped
  export JAX_PLATFORMS=tpu,cpu # named, a TPU that JAX cannot use ends the run
}

start() {
  if runs; then
    [ "$*" = "$(cat train.flags)" ] ||
      refuse "other flags than those of what runs" "the same" "stop that one first"
    return
  fi
  make_ready "$1"
  if [ -f ../train.env ]; then
    chmod 600 ../train.env
    set -a
    # shellcheck disable=SC1091  # made by tpu_pod.sh
    . ../train.env
    set +a
  fi
  echo "$*" > train.flags
  rm -f train.exit
  # shellcheck disable=SC2016  # for the inner shell
  setsid flock train.lock bash -c '"$@" && code=$? || code=$?; echo "$code" > train.exit' run \
    "${command[@]}" "${@:2}" > train.log 2>&1 < /dev/null 3>&- &
  echo $! > train.pid
  # Or a watcher would take the lock first; one that was killed at once never holds it.
  until runs || [ -f train.exit ] || ! kill -0 $! 2> /dev/null; do sleep 0.1; done
}

case ${1:-} in
  run)
    make_ready "$2"
    exec "${command[@]}" "${@:3}"
    ;;
  start) start "${@:2}" ;;
  watch)
    flock --shared train.lock true & # ends when the run does, however that was
    tail --pid=$! --sleep-interval=0.2 --lines=+1 --follow train.log
    [ -f train.exit ] || echo 143 > train.exit # killed before it could say so
    exit "$(cat train.exit)"
    ;;
  stop) ! runs || kill -- "-$(cat train.pid)" ;;
  *) refuse "'${1:-}'" "run, start, watch or stop" "use launch/tpu_pod.sh" ;;
esac
