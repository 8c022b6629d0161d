#!/usr/bin/env bash
# What bounds a vLLM server at many sequences, its engine or its HTTP process: one server on GPU 0 under 300 requests at once, as it is,
# then with py-spy on the engine's process and on the HTTP process; and a second server that has two HTTP processes
# (--api-server-count 2). Beside it, what nvidia-smi says of the GPU and what CPU time the processes took.
#
#   PY_SPY=… benches/gpu/run.sh PARTS benches/gpu/step_profile.sh     on a machine without a network; or, where vLLM is installed,
#   PYTHON=python3 MODELS=… FOREBAY=… PY_SPY=… benches/gpu/step_profile.sh OUT
#
# OUT gets said.txt (the figures) and logs/ (*.stacks: the samples, as flame graphs take them). Environment: see servers.sh; PY_SPY is the
# program (default py-spy), ROUNDS of each load as it is (default 3). Everything started here is ended here, by pid.
set -uo pipefail
out=${1:-${OUT:?usage: step_profile.sh OUT}}
. "$(dirname "${BASH_SOURCE[0]}")/servers.sh"
spy=${PY_SPY:-py-spy}
port='' server='' engine='' seed=10

# Sets port, server and engine, the pids of its first process and of its engine's.
start() { # PORT [argument...]
  start_server "$@"
  port=$1 server=${groups[-1]} engine=
  for pid in $(pgrep -g "$server"); do grep -qz VLLM::EngineCore "/proc/$pid/cmdline" 2>/dev/null && engine=$pid; done
  [[ $engine ]] || { echo "no process named VLLM::EngineCore:" >&2; pgrep -ag "$server" >&2; exit 1; }
  load 300 32 1 >"$logs/$port-warm-up.json" 2>&1
}

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
start 8160
for i in $(seq "$rounds"); do measure "one-300-$i" 300; done
measure one-150 150
measure one-300-engine 300 "$engine"
measure one-300-http 300 "$server"
"$PYTHON" "$root/benches/gpu/step_profile.py" "$logs/one-300-engine.stacks" "$logs/one-300-http.stacks" | tee -a "$out/said.txt"
stop
start 8161 --api-server-count 2
for i in $(seq "$rounds"); do measure "two-300-$i" 300; done
