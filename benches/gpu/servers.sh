# For the scripts beside this one, which source it: vLLM servers on GPU 0 with made-up weights, started and ended here, by pid.
# Takes $out, a folder; sets $root, $forebay, $logs.
#
# Environment: FOREBAY (default target/release/forebay), PYTHON runs vLLM, MODELS holds the model's folder qwen7b, CACHE keeps what is
# compiled, SERVER_ARGS in place of the arguments that a GPU server gets.
# shellcheck shell=bash disable=SC2034
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
forebay=${FOREBAY:-$root/target/release/forebay}
logs=$out/logs
mkdir -p "$logs"
compiled=${CACHE:-$out/cache}/gpu0
export CUDA_VISIBLE_DEVICES=0 VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
export VLLM_HOST_IP=127.0.0.1 CUDA_MODULE_LOADING=LAZY PYTHONUNBUFFERED=1
export VLLM_CACHE_ROOT=$compiled/vllm TRITON_CACHE_DIR=$compiled/triton TORCHINDUCTOR_CACHE_DIR=$compiled/inductor
read -r -a server_args <<<"${SERVER_ARGS:---load-format dummy --max-num-seqs 1024 --gpu-memory-utilization 0.40 --kv-cache-memory-bytes 16G}"
groups=()

stop() {
  local pid
  for pid in "${groups[@]}"; do kill -TERM -- "-$pid" 2>/dev/null; done
  for _ in $(seq 50); do
    for pid in "${groups[@]}"; do kill -0 -- "-$pid" 2>/dev/null && sleep 0.2 && continue 2; done
    break
  done
  for pid in "${groups[@]}"; do kill -KILL -- "-$pid" 2>/dev/null; done
  groups=()
}
trap stop EXIT
trap 'exit 143' INT TERM

answers() { "$PYTHON" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=2)' "$1" 2>/dev/null; }

# Waits until URL answers; fails when PID has ended or after SECONDS.
up() { # URL PID SECONDS
  local end=$((SECONDS + $3))
  until answers "$1"; do
    kill -0 "$2" 2>/dev/null || { echo "$1: its process ended" >&2; return 1; }
    ((SECONDS < end)) || { echo "$1 did not answer in $3 s" >&2; return 1; }
    sleep 0.5
  done
}

# Returns when the server answers, with its process group in groups[-1].
start_server() { # PORT [argument...]
  local port=$1
  shift
  setsid "$PYTHON" -m vllm.entrypoints.cli.main serve "$MODELS/qwen7b" --served-model-name qwen7b --host 127.0.0.1 --port "$port" \
    --seed 0 --disable-uvicorn-access-log --max-model-len 8192 "${server_args[@]}" "$@" >"$logs/$port.log" 2>&1 </dev/null &
  groups+=($!)
  echo $! >"$logs/$port.pid"
  up "http://127.0.0.1:$port/health" $! 300 || { tail -n 20 "$logs/$port.log" >&2; exit 1; }
  echo "the server on $port is up, $SECONDS s from the begin" >&2
}
