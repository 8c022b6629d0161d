#!/usr/bin/env bash
# What clients see when an engine on a GPU hangs, when 200 of them leave at once, and when an engine is killed: two real vLLM
# servers that share GPU 0, Forebay before them, tests/real_vllm/failures.py as the clients.
#
#   benches/gpu/run.sh PARTS benches/gpu/failures.sh        on a machine without a network; or, where vLLM is installed,
#   PYTHON=python3 MODELS=… FOREBAY=… benches/gpu/failures.sh OUT
#
# OUT gets said.txt (a line a check) and logs/. Environment: PYTHON runs vLLM, MODELS holds the model's folder qwen7b, CACHE keeps what is
# compiled, SERVER_ARGS in place of the arguments that a GPU server gets. Everything started here is ended here, by pid.
set -uo pipefail
out=${1:?usage: failures.sh OUT}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
forebay=${FOREBAY:-$root/target/release/forebay}
cache=${CACHE:-$out/cache}
export RUN_DIR=$out/logs FOREBAY_MODEL=qwen7b
mkdir -p "$RUN_DIR"
export CUDA_VISIBLE_DEVICES=0 VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
export VLLM_HOST_IP=127.0.0.1 CUDA_MODULE_LOADING=LAZY PYTHONUNBUFFERED=1
export VLLM_CACHE_ROOT=$cache/gpu0/vllm TRITON_CACHE_DIR=$cache/gpu0/triton TORCHINDUCTOR_CACHE_DIR=$cache/gpu0/inductor
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

start_server() { # PORT
  setsid "$PYTHON" -m vllm.entrypoints.cli.main serve "$MODELS/qwen7b" --served-model-name qwen7b --host 127.0.0.1 --port "$1" \
    --seed 0 --disable-uvicorn-access-log --max-model-len 8192 "${server_args[@]}" >"$RUN_DIR/$1.log" 2>&1 </dev/null &
  groups+=($!)
  echo $! >"$RUN_DIR/$1.pid"
  up "http://127.0.0.1:$1/health" $! 300 || { tail -n 20 "$RUN_DIR/$1.log" >&2; exit 1; }
}

begin=$SECONDS
# The second one finds what the first has compiled.
start_server 8150
start_server 8151
echo "servers up after $((SECONDS - begin)) s" >&2

export FOREBAY_URL=http://127.0.0.1:8152 FOREBAY_ADMIN_URL=http://127.0.0.1:8153
export FOREBAY_VLLM_URLS=http://127.0.0.1:8150,http://127.0.0.1:8151
cat >"$RUN_DIR/forebay.toml" <<'TOML'
[listen]
address = "127.0.0.1:8152"
[admin]
address = "127.0.0.1:8153"
[health]
interval = "500ms"
timeout = "500ms"
stall_timeout = "2s"
ejection = { base = "2s", max = "4s" }
[[pools]]
model = "qwen7b"
backends = [{ url = "http://127.0.0.1:8150" }, { url = "http://127.0.0.1:8151" }]
TOML
setsid "$forebay" serve --config "$RUN_DIR/forebay.toml" >"$RUN_DIR/forebay.log" 2>&1 </dev/null &
groups+=($!)
up "$FOREBAY_ADMIN_URL/ready" $! 30 || { tail -n 20 "$RUN_DIR/forebay.log" >&2; exit 1; }
"$PYTHON" "$root/tests/real_vllm/failures.py" gpu | tee "$out/said.txt"
