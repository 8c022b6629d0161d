#!/usr/bin/env bash
# Starts a vLLM server on loopback, in the background, and returns once it is healthy; or stops one.
#
#   serve.sh VENV PORT NAME [arguments of `vllm serve`...]
#   serve.sh --stop PORT [SIGNAL]      the signal is TERM unless named; what still runs after 30 s is killed
#
# VENV     what setup.sh made.      NAME   the name of the model in requests.
# RUN_DIR  where PORT.log and PORT.pid are (default: real-vllm in the folder for temporary files).
# MODEL    the folder of the model (default: the one that setup.sh made).
# KV_CACHE, MAX_LEN    the KV cache's size (default 64M, 65,536 tokens) and --max-model-len (default 2048).
# WAIT_S   how long it may take to be healthy (default 300).
# SCHEME   https where the arguments have --ssl-certfile (default http); its certificate is not checked here.
# Several may be started at once, with `&` and `wait`.
set -euo pipefail
run=${RUN_DIR:-${TMPDIR:-/tmp}/real-vllm}

stop() { # PORT SIGNAL
    local pid
    pid=$(cat "$run/$1.pid" 2>/dev/null) || return 0
    rm -f "$run/$1.pid"
    kill -s "$2" "$pid" 2>/dev/null || return 0
    for _ in $(seq 150); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.2
    done
    echo "serve.sh: the server on port $1 did not end within 30 s and is killed" >&2
    # Its engine is in the same process group, by setsid.
    kill -s KILL -- "-$pid" 2>/dev/null || true
}

if [ "${1:-}" = --stop ]; then
    stop "${2:?usage: serve.sh --stop PORT [SIGNAL]}" "${3:-TERM}"
    exit
fi

usage='usage: serve.sh VENV PORT NAME [arguments of vllm serve...]'
venv=$(cd "${1:?$usage}" && pwd)
port=${2:?$usage}
name=${3:?$usage}
shift 3
mkdir -p "$run"
run=$(cd "$run" && pwd)
log=$run/$port.log

scheme=${SCHEME:-http}
if curl -sk -o /dev/null --max-time 2 "$scheme://127.0.0.1:$port/"; then
    echo "serve.sh: port $port is taken" >&2
    exit 1
fi

# It asks nobody outside, and uses one thread on any core: README.md says why.
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
export VLLM_HOST_IP=127.0.0.1 GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind

# From the folder of the model: a full path would show in answers and logs. The executor's short name would give another one.
cd "$venv"
started=$SECONDS
setsid "$venv/bin/vllm" serve "${MODEL:-tiny-model}" --served-model-name "$name" --host 127.0.0.1 --port "$port" \
    --dtype float32 --enforce-eager --max-model-len "${MAX_LEN:-2048}" \
    --kv-cache-memory-bytes "${KV_CACHE:-64M}" --block-size 32 \
    --distributed-executor-backend vllm.v1.executor.uniproc_executor.UniProcExecutor \
    "$@" >"$log" 2>&1 </dev/null &
pid=$!
echo "$pid" >"$run/$port.pid"

until curl -skf -o /dev/null --max-time 2 "$scheme://127.0.0.1:$port/health"; do
    why=
    kill -0 "$pid" 2>/dev/null || why="it ended"
    [ $((SECONDS - started)) -lt "${WAIT_S:-300}" ] || why="no answer after ${WAIT_S:-300} s"
    if [ -n "$why" ]; then
        echo "serve.sh: the server on port $port did not start: $why; the end of $log:" >&2
        tail -n 30 "$log" >&2
        stop "$port" TERM
        exit 1
    fi
    sleep 0.25
done
echo "port $port: healthy after $((SECONDS - started)) s, pid $pid, log $log"
