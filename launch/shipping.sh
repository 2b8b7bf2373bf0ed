# shellcheck shell=bash
# What tpu_pod.sh and tpu_gke.sh send to their machines, and whether a run finds there what it reads.
# Sourced, not run.
# shellcheck disable=SC2154  # common.sh sets flags and shipped
. launch/verbs.sh

value_of() { # MACRO: prints its last value, which is the one that counts, without quotes
  local flag value=""
  for flag in "${flags[@]}"; do
    [[ $flag != "--gin.$1="* ]] || value=${flag#*=}
  done
  value=${value#[\"\']}
  echo "${value%[\"\']}"
}

check_run() { # VERB NAME: one that Google Cloud takes, and its files outlive the machines
  local macro=MODEL_DIR path
  [[ $1 == *train ]] || macro=EVAL_OUTPUT_DIR
  [[ $2 =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    refuse "NAME '$2'" "at most 40 of a-z, 0-9 and -, a letter first" "choose another"
  path=$(value_of "$macro")
  [[ $path == gs://* ]] ||
    refuse "no $macro in a bucket${path:+ but $path}" "one that outlives the machines" \
      "pass --gin.$macro=\"'gs://BUCKET/RUN'\""
  for path in "${shipped[@]}"; do
    [ -e "$path" ] || refuse "no file or folder $path" "one" "correct --ship"
  done
  check_paths
}

check_paths() { # what a flag names and git does not know is here and nowhere else
  local flag path
  for flag in "${flags[@]}"; do
    path=${flag#*=} path=${path#[\"\']} path=${path%[\"\']}
    if [ -e "$path" ] && [ -z "$(git ls-files -- "$path" 2> /dev/null)" ]; then
      refuse "${flag%%=*}=$path, which is on this machine alone" "a path in a bucket, or one that is shipped" \
        "pass --ship=$path and ${flag%%=*}=shipped/$(basename "$path")"
    fi
  done
}

need_file() { # PATH FLAG
  [ -f "$1" ] || refuse "no file $1" "one" "correct $2"
}

pack() { # FOLDER: gets tracked files as they stand, as what git does not know may be a secret, and
  # in shipped/ what was named
  run rm -rf "$1"
  run mkdir -p "$1/shipped"
  # shellcheck disable=SC2016  # for the inner shell
  run bash -c 'tree=$(git stash create) && git archive "${tree:-HEAD}" | tar -x -C "$0"' "$1"
  [ ${#shipped[@]} = 0 ] || run cp -RL "${shipped[@]%/}" "$1/shipped/"
}
