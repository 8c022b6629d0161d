#!/usr/bin/env bash
# What bounds a vLLM server at many sequences, its engine or its HTTP process: one server on GPU 0 under 300 requests at once, as it is,
# then with py-spy on the engine's process and on the HTTP process; and a second server that has two HTTP processes
# (--api-server-count 2). Beside it, what nvidia-smi says of the GPU and what CPU time the processes took.
#
#   PY_SPY=… benches/gpu/run.sh PARTS benches/gpu/step_profile.sh     on a machine without a network; or, where vLLM is installed,
#   PYTHON=python3 MODELS=… FOREBAY=… PY_SPY=… benches/gpu/step_profile.sh OUT
#
# OUT gets said.txt (the figures) and logs/ (*.stacks: the samples, as flame graphs take them). Environment: PY_SPY is the program
# (default py-spy), PYTHON runs vLLM, MODELS holds the model's folder qwen7b, CACHE keeps what is compiled, SERVER_ARGS in place of the
# arguments that a GPU server gets, ROUNDS of each load as it is (default 3). Everything started here is ended here, by pid.
set -uo pipefail
out=${1:?usage: step_profile.sh OUT}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
forebay=${FOREBAY:-$root/target/release/forebay}
spy=${PY_SPY:-py-spy}
cache=${CACHE:-$out/cache}
logs=$out/logs
port=8160
mkdir -p "$logs"
export CUDA_VISIBLE_DEVICES=0 VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
export VLLM_HOST_IP=127.0.0.1 CUDA_MODULE_LOADING=LAZY PYTHONUNBUFFERED=1
export VLLM_CACHE_ROOT=$cache/gpu0/vllm TRITON_CACHE_DIR=$cache/gpu0/triton TORCHINDUCTOR_CACHE_DIR=$cache/gpu0/inductor
read -r -a server_args <<<"${SERVER_ARGS:---load-format dummy --max-num-seqs 1024 --gpu-memory-utilization 0.40 --kv-cache-memory-bytes 16G}"
server='' engine='' seed=10

stop() {
  [[ $server ]] || return 0
  kill -TERM -- "-$server" 2>/dev/null
  for _ in $(seq 50); do kill -0 -- "-$server" 2>/dev/null || break; sleep 0.2; done
  kill -KILL -- "-$server" 2>/dev/null
  server=
}
trap stop EXIT
trap 'exit 143' INT TERM

start() { # NAME [argument...]
  local name=$1 end=$((SECONDS + 300))
  shift
  setsid "$PYTHON" -m vllm.entrypoints.cli.main serve "$MODELS/qwen7b" --served-model-name qwen7b --host 127.0.0.1 --port $port \
    --seed 0 --disable-uvicorn-access-log --max-model-len 8192 "${server_args[@]}" "$@" >"$logs/$name.log" 2>&1 </dev/null &
  server=$!
  until "$PYTHON" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=2)' "http://127.0.0.1:$port/health" 2>/dev/null; do
    kill -0 "$server" 2>/dev/null || { tail -n 20 "$logs/$name.log" >&2; return 1; }
    ((SECONDS < end)) || { echo "the server did not answer in 300 s" >&2; return 1; }
    sleep 0.5
  done
  echo "$name is up, $SECONDS s from the begin" >&2
  engine=$(named VLLM::EngineCore | head -n 1)
  [[ $engine ]] || { echo "no process named VLLM::EngineCore:" >&2; pgrep -ag "$server" >&2; return 1; }
  load 300 32 1 >"$logs/$name-warm-up.json" 2>&1
}
named() { for pid in $(pgrep -g "$server"); do grep -qz "$1" "/proc/$pid/cmdline" 2>/dev/null && echo "$pid"; done; }

load() { # COUNT TOKENS SEED
  "$forebay" bench http://127.0.0.1:$port --num-prompts "$1" --input-len 100 --output-len "$2" --ignore-eos --temperature 0 --seed "$3" \
    --no-scrape --json
}
# Seconds of CPU, user and system, of the engine and of the server's other processes.
cpu() {
  local pid
  for pid in $(pgrep -g "$server"); do
    awk -v e=$([[ $pid == "$engine" ]] && echo engine || echo http) '{ sub(/^.*\) /, ""); print e, ($12 + $13) / 100 }' "/proc/$pid/stat"
  done 2>/dev/null | awk '{ s[$1] += $2 } END { print s["engine"], s["http"] }'
}

measure() { # NAME COUNT [PID to watch with py-spy]
  local run=$1 watch=() before after from
  seed=$((seed + 1))
  timeout 60 nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits -lms 500 >"$logs/$run-gpu.csv" 2>/dev/null &
  watch+=($!)
  if [[ ${3:-} ]]; then
    (sleep 3; exec "$spy" record --pid "$3" --duration 6 --rate 100 --format raw --output "$logs/$run.stacks") >"$logs/$run-py-spy.log" 2>&1 &
    watch+=($!)
  fi
  before=$(cpu) from=$EPOCHREALTIME
  load "$2" 600 $seed >"$logs/$run.json" 2>&1
  after=$(cpu)
  # shellcheck disable=SC2086 # two numbers each
  "$PYTHON" "$root/benches/gpu/step_profile.py" "$logs/$run" "$from" "$EPOCHREALTIME" $before $after | tee -a "$out/said.txt"
  kill "${watch[0]}" 2>/dev/null
  wait "${watch[@]}" 2>/dev/null
}

rounds=${ROUNDS:-3}
start one || exit 1
for i in $(seq "$rounds"); do measure "one-300-$i" 300; done
measure one-150 150
measure one-300-engine 300 "$engine"
measure one-300-http 300 "$server"
"$PYTHON" "$root/benches/gpu/step_profile.py" "$logs/one-300-engine.stacks" "$logs/one-300-http.stacks" | tee -a "$out/said.txt"
stop
start two --api-server-count 2 || exit 1
for i in $(seq "$rounds"); do measure "two-300-$i" 300; done
stop
