# shellcheck shell=bash
# The environments of matrix.sh and bisect.sh. Sourced, not run.
# shellcheck disable=SC2034  # folder is for those that source this file
. launch/common.sh
. launch/pythons.sh

take() { # END: sets version, folder and what setup.sh reads
  [[ $1 =~ ^3\.1[123]=(newest|lowest|locked)$ ]] ||
    refuse "END '$1'" "3.11, 3.12 or 3.13, and =newest, =lowest or =locked" "correct it"
  version=${1%=*} folder=runs/matrix/${1/=/-} CONSTRAINTS=""
  PYTHON=$(interpreter "$version")
  export PYTHON CONSTRAINTS VENV=$folder/venv
  mkdir -p "$folder"
  case $1 in
    *=locked) CONSTRAINTS=locked ;;
    *=lowest)
      CONSTRAINTS=$folder/lowest.txt
      "$PYTHON" launch/versions.py lowest data,teach,report,dev > "$CONSTRAINTS"
      ;;
  esac
}

set_up() { # installs what is not installed yet; installed.txt says what it has
  bash launch/setup.sh dev
  "$VENV/bin/python" launch/versions.py installed > "$folder/installed.txt"
}
