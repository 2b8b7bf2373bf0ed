#!/usr/bin/env bash
# Runs launch/test.sh at the ends of what setup.py takes, each in an environment of its own that stays
# (runs/matrix; delete it for the newest versions of another day), and prints a table. Where test.sh has
# no arguments, the versions of an end that passed become those of its Python in launch/constraints.
#   bash launch/matrix.sh [END ...] [-- ARGUMENTS OF test.sh]
# END: PYTHON=VERSIONS; VERSIONS: newest, lowest (setup.py's bounds) or locked (launch/constraints).
# Without one: 3.11=lowest 3.13=newest.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/ends.sh
ends=() rows=() failed=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  ends+=("$1")
  shift
done
[ $# = 0 ] || shift
[ ${#ends[@]} != 0 ] || ends=(3.11=lowest 3.13=newest)

for end in "${ends[@]}"; do take "$end"; done # what is wrong or missing is said before pip starts
for end in "${ends[@]}"; do
  take "$end"
  set_up
done
for end in "${ends[@]}"; do
  take "$end"
  rm -f "$folder/results.xml"
  code=0 started=$SECONDS
  bash launch/test.sh "$@" "--junitxml=$folder/results.xml" 2>&1 | tee "$folder/log.txt" || code=$?
  row=$("$VENV/bin/python" launch/versions.py row "$folder/results.xml")
  rows+=("$row | $(((SECONDS - started) / 60)).$(((SECONDS - started) % 60 / 6))")
  if [ "$code" != 0 ]; then
    failed+=("$end")
  elif [ $# = 0 ] && [ "${end#*=}" != locked ]; then
    # torch itself pins what its build for a GPU brings.
    grep -vE '^(cuda|nvidia)-|^triton=' "$folder/installed.txt" > "launch/constraints/$version.txt"
  fi
done

echo "| Python | jax | flax | numpy | passed | failed | skipped | minutes |"
echo "|---|---|---|---|---|---|---|---|"
printf '| %s |\n' "${rows[@]}"
[ ${#failed[@]} = 0 ] || {
  echo "matrix.sh: failed: ${failed[*]}; see runs/matrix/END/log.txt and launch/bisect.sh" >&2
  exit 1
}
