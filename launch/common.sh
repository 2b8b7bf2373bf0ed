# shellcheck shell=bash
# What the launch scripts share. Sourced, not run.

dry_run=""
words=()          # arguments that are no flags
flags=()          # those of the verb, in their order
passed=()         # what stands between two --: flags of gcloud or xpk
shipped=()        # each --ship=PATH
declare -A option # the script's own, such as option[--spot]
exec 3>&1         # `run` prints here, also where its command's output is captured

refuse() { # GOT EXPECTED REMEDY: wrong input ends in one line
  echo "$(basename "$0"): got $1; expected $2; $3" >&2
  exit 2
}

run() { # COMMAND...: prints it; under --dry-run that is all
  local word line=""
  for word; do
    [[ $word =~ ^[-A-Za-z0-9_./:=,@]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line# }" >&3
  [ -n "$dry_run" ] || "$@"
}

need() { # COMMAND REMEDY
  [ -n "$dry_run" ] || command -v "$1" > /dev/null || refuse "no $1 on PATH" "one" "$2"
}

# Unknown options end the script, or a misspelt --dry-run would launch.
read_arguments() { # "OWN OPTIONS" ARGUMENTS...
  local allowed=" $1 --dry-run " argument inside=""
  shift
  for argument; do
    if [ "$argument" = -- ]; then
      [ -n "$inside" ] && inside="" || inside=yes
      continue
    elif [ -n "$inside" ]; then
      passed+=("$argument")
      continue
    fi
    case $argument in
      --gin_file=* | --gin_search_paths=* | --gin.*=*) flags+=("$argument") ;;
      -*)
        [[ $allowed == *" ${argument%%=*} "* ]] ||
          refuse "$argument" "one of$allowed--gin_file=FILE --gin.NAME=VALUE" "correct it"
        option[${argument%%=*}]=${argument#*=}
        [[ $argument != --ship=* ]] || shipped+=("${argument#*=}")
        ;;
      *) words+=("$argument") ;;
    esac
  done
  [ -z "$inside" ] || refuse "one --" "two, around what is handed on" "add the second"
  dry_run=${option[--dry-run]:-}
}
