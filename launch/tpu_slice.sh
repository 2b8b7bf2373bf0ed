# shellcheck shell=bash
# A Cloud TPU slice through gcloud. Sourced by tpu_pod.sh, which sets name, zone, slice, kind (tpu-vm
# or queued-resources) and spot ("" or --spot). A queued resource has one node, of its own name.
# shellcheck disable=SC2154

tpus() { # KIND VERB WHAT... [FLAGS]
  run gcloud "${track[@]}" compute tpus "$@" "--zone=$zone" --quiet "${every[@]}"
}

on() { tpus tpu-vm ssh "$name" "--worker=$1" "--command=$2" "${@:3}" "${ssh[@]}"; } # WORKERS COMMAND

copy() { tpus tpu-vm scp "$1" "$name:$2" --worker=all "${ssh[@]}"; } # FILE PATH THERE

state() { # prints one word; nothing where there is no such slice
  local path=state said
  [ "$kind" = tpu-vm ] || path=state.state
  if said=$(tpus "$kind" describe "$name" "--format=value($path)" 2>&1); then
    echo "${said##*$'\n'}"
  elif [[ $said != *NOT_FOUND* ]]; then
    echo "$said" >&2
    return 1
  fi
}

create() {
  local type image
  type=$(accelerator "$slice")
  image=$(runtime "$type")
  if [ "$kind" = tpu-vm ]; then
    tpus tpu-vm create "$name" "--accelerator-type=$type" "--version=$image" ${spot:+"$spot"} \
      "${make[@]}"
  else
    tpus queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" \
      "--runtime-version=$image" ${spot:+"$spot"} "${make[@]}"
  fi
}

remove() {
  local force=()
  [ "$kind" = tpu-vm ] || force=(--force) # or it asks for its node to be deleted first
  tpus "$kind" delete "$name" "${force[@]}"
}

make_ready() { # creates the slice, waits for it, or takes it as it is
  local now
  while true; do
    now=$(state)
    case $now in
      READY | ACTIVE) return ;;
      "")
        create
        [ -z "$dry_run" ] || return 0
        ;;
      PREEMPTED | TERMINATED | SUSPENDED) remove ;; # nothing is left on it; its name is in the way
      FAILED | STOPPED) refuse "$name $now" "a slice that is ready or on its way" "delete it first" ;;
      *) sleep "${POLL_SECONDS:-30}" ;;
    esac
  done
}
