#!/usr/bin/env bash
# Makes .venv and installs cot-flax with what its commands need into it, once; again only when
# setup.py has changed.
#   bash launch/setup.sh [EXTRAS]        more EXTRAS of setup.py: none (default), dev, tpu, gpu, beam, ...,
#                                        comma-separated
# PYTHON chooses the interpreter (3.11, 3.12 or 3.13); VENV another folder.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-}
venv=${VENV:-.venv}
python=${PYTHON:-python3}
stamp="$venv/installed-${extras:-alone}"

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || {
  echo "setup: got $("$python" --version); expected 3.11, 3.12 or 3.13; set PYTHON=/path/to/python3.12" >&2
  exit 2
}
if ! cmp -s setup.py "$stamp"; then
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --upgrade pip setuptools wheel
  "$venv/bin/python" -m pip install --quiet --editable ".[data,teach,report${extras:+,$extras}]"
  cp setup.py "$stamp"
fi
