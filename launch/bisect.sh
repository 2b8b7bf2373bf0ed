#!/usr/bin/env bash
# Names the package whose new version makes tests fail: between the versions of launch/constraints, with
# which they pass, and those of an END of launch/matrix.sh, with which they fail.
#   bash launch/bisect.sh END PYTEST ARGUMENTS       such as 3.13=newest tests/text
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/ends.sh
[ $# -ge 2 ] || refuse "'$*'" "END PYTEST ARGUMENTS" "see launch/bisect.sh"
take "$1"
bad=$folder/installed.txt
[ -f "$bad" ] || refuse "no $bad" "the versions of $1" "run: bash launch/matrix.sh $1"
take "$version=locked"
folder=runs/matrix/$version-bisect
VENV=$folder/venv
mkdir -p "$folder"
rm -rf "$VENV" # an earlier bisection has left other versions
set_up
JAX_PLATFORMS=cpu "$VENV/bin/python" launch/bisect_upgrades.py "$VENV" "$folder/installed.txt" \
  "$bad" -- python -m pytest "${@:2}"
