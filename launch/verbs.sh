# shellcheck shell=bash
# What a launch runs, here or on the machine that it goes to. Sourced, not run.
# shellcheck disable=SC2034  # `command` is for those that source this file
. launch/pythons.sh

check_verb() {
  case $1 in
    train | evaluate | t5x.train | t5x.eval | t5x.infer) ;;
    *) refuse "'$1'" "train, evaluate, t5x.train, t5x.eval or t5x.infer" "correct the verb" ;;
  esac
}

find_python() { # the images of TPU VMs have Python 3.10
  fits "$(version_of python3)" && return
  PYTHON=$(interpreter 3.12)
  export PYTHON
}

set_up() { # EXTRAS VERB: sets `command`, what the flags of the verb are added to
  local bin="${VENV:-.venv}/bin" folder=..
  if [[ $2 == t5x.* ]]; then
    [ ! -d shipped/t5x ] || folder=shipped
    run bash launch/setup_t5x.sh "$folder" "$1"
    command=("$bin/python" -m "$2")
  else
    run bash launch/setup.sh "$1"
    command=("$bin/cot-flax" "$2")
  fi
}

# A package that was shipped can be imported, and so can the packages in a project that was.
find_shipped() {
  local folder path=$PWD/shipped
  for folder in shipped/*/; do
    [ ! -d "$folder" ] || [ -f "${folder}__init__.py" ] || path+=:$PWD/${folder%/}
  done
  export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH}
}
