# shellcheck shell=bash
# What tpu_pod.sh and tpu_gke.sh share. Sourced, not run.
. launch/common.sh

check_run() { # NAME: it is one that Google Cloud takes, and the run survives a preemption
  [[ $1 =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    refuse "NAME '$1'" "at most 40 of a-z, 0-9 and -, a letter first" "choose another"
  local quote="[\"']"
  [[ ${train_flags[*]} =~ --gin\.MODEL_DIR=${quote}gs:// ]] ||
    refuse "no MODEL_DIR in a bucket" "one that outlives the machines" \
      "pass --gin.MODEL_DIR=\"'gs://BUCKET/RUN'\""
}

need_file() { # PATH FLAG
  [ -f "$1" ] || refuse "no file $1" "one" "correct $2"
}

need_account() {
  need gcloud "install it: https://cloud.google.com/sdk/docs/install"
  local account
  account=$(run gcloud auth list --filter=status:ACTIVE "--format=value(account)")
  [ -n "$dry_run$account" ] || refuse "no account in gcloud" "one" "run: gcloud auth login"
}

accelerator() { # SLICE: prints what Google Cloud calls it
  local chips='(1|4|8|16|32|64|128|256)' size=${1##*-}
  if [[ $1 =~ ^v5e-$chips$ ]]; then
    echo "v5litepod-$size"
  elif [[ $1 =~ ^v6e-$chips$ || ($1 =~ ^v(4|5p)-[1-9][0-9]*$ && $((10#$size % 8)) == 0) ]]; then
    echo "$1"
  else
    refuse "SLICE '$1'" "v5e-N or v6e-N, N chips from 1 to 256, or v4-N or v5p-N, N cores from 8" \
      "choose one"
  fi
}

pack() { # FILE.tar.gz: tracked files as they stand; what git does not know may be a secret
  # shellcheck disable=SC2016  # for the inner shell
  run bash -c 'tree=$(git stash create) && git archive --output="$0" "${tree:-HEAD}"' "$1"
}

runtime() { # ACCELERATOR: the image that its virtual machines start from
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}
