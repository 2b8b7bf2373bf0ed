#!/usr/bin/env bash
# One worker of tpu_pod.sh. The training outlives the connection that started it.
#   bash launch/tpu_worker.sh start FLAGS...   sets up and trains, unless the same training runs
#   bash launch/tpu_worker.sh watch            shows the log to its end; exits as the training did
#   bash launch/tpu_worker.sh stop
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh
verb=${1:-}

runs() { ! flock --shared --nonblock train.lock true; }

find_python() { # the images of TPU VMs have Python 3.10
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' && return
  python3 -m pip install --quiet --user uv
  ~/.local/bin/uv python install --quiet 3.12
  PYTHON=$(~/.local/bin/uv python find 3.12)
  export PYTHON
}

start() {
  if runs; then
    [ "$*" = "$(cat train.flags)" ] ||
      refuse "other flags than those of the training that runs" "the same" "stop that one first"
    return
  fi
  find_python
  bash launch/setup.sh tpu
  if [ -f ../train.env ]; then
    chmod 600 ../train.env
    set -a
    # shellcheck disable=SC1091  # made by tpu_pod.sh
    . ../train.env
    set +a
  fi
  export JAX_PLATFORMS=tpu,cpu # named, a TPU that JAX cannot use ends the training
  echo "$*" > train.flags
  rm -f train.exit
  # shellcheck disable=SC2016  # for the inner shell
  setsid flock train.lock bash -c '"$@" && code=$? || code=$?; echo "$code" > train.exit' train \
    "${VENV:-.venv}/bin/cot-flax" train "$@" > train.log 2>&1 < /dev/null 3>&- &
  echo $! > train.pid
  # Or a watcher would take the lock first; one that was killed at once never holds it.
  until runs || [ -f train.exit ] || ! kill -0 $! 2> /dev/null; do sleep 0.1; done
}

case $verb in
  start) start "${@:2}" ;;
  watch)
    flock --shared train.lock true & # ends when the training does, however that was
    tail --pid=$! --sleep-interval=0.2 --lines=+1 --follow train.log
    [ -f train.exit ] || echo 143 > train.exit # killed before it could say so
    exit "$(cat train.exit)"
    ;;
  stop) ! runs || kill -- "-$(cat train.pid)" ;;
  *) refuse "'$verb'" "start, watch or stop" "use launch/tpu_pod.sh" ;;
esac
