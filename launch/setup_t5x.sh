#!/usr/bin/env bash
# Sets up as launch/setup.sh does, with T5X in the same environment, and prints a first command of it.
#   bash launch/setup_t5x.sh [FOLDER [EXTRAS]]       EXTRAS: more of setup.py's, such as gpu
# FOLDER (default: the one that this checkout lies in) has checkouts of t5x, airio and jestimator; those that
# are not there are cloned from GitHub, at the commits below. PYTHON and VENV as for launch/setup.sh.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd -P)
folder=${1:-$root/..}
[[ $folder == /* ]] || folder=$PWD/$folder
[ ! -d "$folder" ] || folder=$(cd "$folder" && pwd -P)
cd "$root"
. launch/common.sh
python=${VENV:-.venv}/bin/python
pins=(
  google-research/t5x@cc342d419ec3e3e9c4bf1df33c82330cafdc1e16
  google/airio@69897df7d9a427b947a9f7bb4164c7782b43e601
  google-research/jestimator@326824a477feef6d92e6f44175000907a72899ca
)

clone() { # REPOSITORY COMMIT PATH: whole or not at all
  local url=https://github.com/$1 error
  [[ $3/ != "$root"/* ]] ||
    refuse "no $3" "it, as nothing is cloned into this checkout" "name another FOLDER"
  rm -rf "$3.part"
  git init --quiet "$3.part"
  error=$(GIT_TERMINAL_PROMPT=0 git -C "$3.part" fetch --quiet --depth=1 "$url" "$2" 2>&1) || {
    rm -rf "$3.part"
    refuse "no answer from $url (${error%%$'\n'*})" "one, or a checkout at $3" \
      "put one there at commit ${2:0:8}, or name the FOLDER that has it"
  }
  git -C "$3.part" -c advice.detachedHead=false checkout --quiet FETCH_HEAD
  mv "$3.part" "$3"
}

for pin in "${pins[@]}"; do
  repository=${pin%@*} commit=${pin#*@} name=${repository#*/} path=$folder/${repository#*/}
  [ -e "$path" ] || clone "$repository" "$commit" "$path"
  [ -d "$path/$name" ] ||
    refuse "$path without a folder $name" "a checkout of $repository" "name the FOLDER that it lies in"
  head=$(git --git-dir="$path/.git" rev-parse HEAD 2> /dev/null) || head=unknown
  [ "$head" = "$commit" ] ||
    echo "setup_t5x.sh: warning: $path is at commit ${head:0:8}; tested is ${commit:0:8}" >&2
done
bash launch/setup.sh "${2:+$2,}t5x"
# gin-config 0.5.0 takes the first folder of a file's path for a Python package, and ends where it is a plain
# folder such as `runs` of the working directory: that reader is left out, as it is under cot-flax.
"$python" - "$folder"/{t5x,airio,jestimator} << 'END'
import pathlib, sys, sysconfig
start = 'import sys, types; sys.modules["gin.resource_reader"] = types.ModuleType("gin.resource_reader")'
pathlib.Path(sysconfig.get_path("purelib"), "t5x.pth").write_text("\n".join([*sys.argv[1:], start, ""]))
END
said=$(env -u PYTHONPATH JAX_PLATFORMS=cpu "$python" -c "import cot_flax.hosts.t5x, t5x.infer, t5x.train" 2>&1) ||
  refuse "T5X in $folder, which fails (${said##*$'\n'})" "the commits in launch/setup_t5x.sh" \
    "check them out, or name another FOLDER"
cat << END
T5X is ready in ${python%/bin/python}. For example:
  $python -m t5x.train --gin_search_paths=gin --gin_file=experiments/world_base.gin \\
    --gin_file=t5x/train.gin --gin.MODEL_DIR="'/tmp/t5x_base'"
END
