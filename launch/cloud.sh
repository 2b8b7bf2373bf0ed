# shellcheck shell=bash
# What tpu_pod.sh and tpu_gke.sh share of Google Cloud. Sourced, not run.
# shellcheck disable=SC2034  # tpu_slice.sh takes what sort_passed sets
. launch/common.sh
. launch/shipping.sh

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

runtime() { # ACCELERATOR: the image that its virtual machines start from
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

every=() ssh=() make=() # flags of gcloud for every call, for connections, and to create a slice
track=()                # of gcloud's commands: none, or alpha

sort_passed() { # puts each flag that was passed where it belongs
  local flag
  for flag in "${passed[@]}"; do
    case $flag in
      --project=* | --account=* | --impersonate-service-account=* | --verbosity=*) every+=("$flag") ;;
      alpha) track=(alpha) ;;
      --tunnel-through-iap) ssh+=("$flag") track=(alpha) ;; # others do not have it
      --internal-ip | --ssh-*) ssh+=("$flag") ;;
      *) make+=("$flag") ;;
    esac
  done
}
