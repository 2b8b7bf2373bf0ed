#!/usr/bin/env bash
# Makes .venv and installs cot-flax with what its commands need into it, once; again only when
# setup.py or CONSTRAINTS has changed.
#   bash launch/setup.sh [EXTRAS]        more EXTRAS of setup.py: none (default), dev, tpu, gpu, beam, ...,
#                                        comma-separated
# PYTHON chooses the interpreter (3.11, 3.12 or 3.13; the first of them on PATH); VENV another folder;
# CONSTRAINTS the versions: the newest (default), `locked` for those of launch/constraints, with which the
# tests passed, or a file of pip's.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/pythons.sh
extras=${1:-}
venv=${VENV:-.venv}
constraints=${CONSTRAINTS:-/dev/null}
stamp="$venv/installed-${extras:-alone}"

refuse() { # GOT EXPECTED REMEDY; launch/common.sh wants bash 4, which macOS has not
  echo "setup.sh: got $1; expected $2; $3" >&2
  exit 2
}

made="" first=""
[ ! -e "$venv/pyvenv.cfg" ] || made=$(version_of "$venv/bin/python")
candidates=("${made:+$venv/bin/}python3" python3.13 python3.12 python3.11)
[ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
for python in "${candidates[@]}"; do
  version=$(version_of "$python")
  first=${first:-$version}
  ! fits "$version" || break
done
fits "$version" || refuse "Python ${first:-that does not start}" "3.11, 3.12 or 3.13" \
  "set PYTHON=/path/to/python3.12"
[ "${made:-$version}" = "$version" ] || refuse "Python $version for $venv of $made" "one version" \
  "set VENV to another folder, or delete $venv"
[ "$constraints" != locked ] || constraints=launch/constraints/$version.txt
[ -e "$constraints" ] || refuse "no file $constraints" "locked or a file" "correct CONSTRAINTS"

if ! cat setup.py "$constraints" | cmp -s - "$stamp"; then
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  pip=("$venv/bin/python" -m pip install --quiet --constraint "$constraints")
  "${pip[@]}" --upgrade pip setuptools wheel
  "${pip[@]}" --editable ".[data,teach,report${extras:+,$extras}]"
  cat setup.py "$constraints" > "$stamp"
fi
