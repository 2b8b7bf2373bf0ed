# shellcheck shell=bash
# Interpreters of the versions that setup.py takes. Sourced, not run.

version_of() { # PYTHON: prints such as 3.12; nothing where it does not start
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null || true
}

fits() { [[ $1 =~ ^3\.1[123]$ ]]; } # VERSION

has_venv() { # PYTHON VERSION: Debian has a package of its own for venv
  [ "$(version_of "$1")" = "$2" ] && "$1" -c 'import ensurepip, venv' 2> /dev/null
}

interpreter() { # VERSION: prints the path of one that is on PATH or pyenv's, or that uv downloads
  local candidate uv=runs/uv/bin/uv
  for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    if has_venv "$candidate" "$1"; then
      command -v "$candidate"
      return
    fi
  done
  uv=$(command -v uv) || uv=runs/uv/bin/uv
  [ -x "$uv" ] || python3 -m pip install --quiet --target runs/uv uv > /dev/null 2>&1 || true
  "$uv" python install --quiet "$1" 2> /dev/null && "$uv" python find "$1" && return
  refuse "no Python $1 with venv" "one on PATH, pyenv's, or a download by uv" \
    "run: apt-get install python$1-venv, pyenv install $1 or uv python install $1"
}
