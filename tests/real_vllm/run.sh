#!/usr/bin/env bash
# Forebay before real vLLM servers, on loopback: starts them, runs the checks, stops everything by its pid.
#
#   run.sh VENV [FOREBAY]
#
# VENV  what setup.sh made.   FOREBAY  the binary (default target/release/forebay).
# FOREBAY_SIZE   ci (default), or full: larger numbers, and also servers that shed load, two policies beside each other, embeddings, the two load
#                generators beside each other, an experiment that starts its servers itself, and models with sliding windows.
# FOREBAY_DIRECT=1  no Forebay at all: tries the checks themselves.
# Exit 1 if a check failed or something did not start. The last line sums the parts up: `N passed, N failed`.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
venv=$(cd "${1:?usage: run.sh VENV [FOREBAY]}" && pwd)
forebay=${2:-$here/../../target/release/forebay}
direct=${FOREBAY_DIRECT:-0}
size=${FOREBAY_SIZE:-ci}

tmp=$(mktemp -d)
export RUN_DIR=$tmp PYTHONDONTWRITEBYTECODE=1
engines=()
proxy=
health= # a [health] section: with one Forebay gets a file

stop_forebay() {
    [ -n "$proxy" ] || return 0
    kill -TERM "$proxy" 2>/dev/null || true
    for _ in $(seq 50); do kill -0 "$proxy" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$proxy" 2>/dev/null || true
    wait "$proxy" 2>/dev/null || true
    proxy=
}

stop_engines() {
    for port in "${engines[@]}"; do bash "$here/serve.sh" --stop "$port" >/dev/null & done
    wait
    engines=()
}

# shellcheck disable=SC2317 # it is the trap
end() {
    status=$?
    trap - EXIT INT TERM
    stop_forebay
    stop_engines
    rm -rf "$tmp"
    exit "$status"
}
trap end EXIT
trap 'exit 130' INT TERM

free_ports() {
    "$venv/bin/python" - "$1" <<'PY'
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in held:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in held))
PY
}

start_engine() { # PORT [ARGUMENTS...]
    local port=$1
    shift
    engines+=("$port")
    bash "$here/serve.sh" "$venv" "$port" tiny "$@" &
    starting+=($!)
}

wait_engines() {
    for pid in "${starting[@]}"; do wait "$pid"; done
    starting=()
}

start_forebay() { # BACKEND-URL...
    read -r listen admin < <(free_ports 2)
    export FOREBAY_URL=http://127.0.0.1:$listen FOREBAY_ADMIN_URL=http://127.0.0.1:$admin
    export FOREBAY_VLLM_URLS FOREBAY_MODEL=tiny
    FOREBAY_VLLM_URLS=$(IFS=, && echo "$*")
    if [ "$direct" = 1 ]; then
        FOREBAY_URL=$1
        return
    fi
    local args=() backends
    if [ -n "$health" ]; then
        backends=$(printf '{ url = "%s" }, ' "$@")
        printf '%s\n[[pools]]\nmodel = "tiny"\nbackends = [%s]\n' "$health" "$backends" >"$tmp/forebay.toml"
        args=(--config "$tmp/forebay.toml")
    else
        for url in "$@"; do args+=(--backend "$url"); done
    fi
    "$forebay" serve "${args[@]}" --listen "127.0.0.1:$listen" --admin "127.0.0.1:$admin" >"$tmp/forebay.log" 2>&1 &
    proxy=$!
    for _ in $(seq 300); do
        if curl -sf -o /dev/null --max-time 2 "$FOREBAY_ADMIN_URL/ready" &&
            curl -sf --max-time 2 "$FOREBAY_URL/v1/models" | grep -q '"tiny"'; then
            return
        fi
        if ! kill -0 "$proxy" 2>/dev/null; then break; fi
        sleep 0.1
    done
    echo "forebay did not get ready; the end of its log:" >&2
    tail -n 40 "$tmp/forebay.log" >&2
    exit 1
}

# Servers that Forebay starts itself: two arms in turn, all answers whole, looks at the servers in the rows, nothing left behind.
run_experiment() { # PORT PORT
    local result="0 passed, 1 failed" rows=$tmp/experiment/rows.jsonl
    if VENV=$venv PORT_A=$1 PORT_B=$2 "$forebay" compare "$here/experiment.toml" --out "$tmp/experiment" &&
        [ "$(grep -c '^{"end"' "$rows")" = 4 ] && [ "$(grep -c '"outcome":"success"' "$rows")" = 96 ] &&
        grep -q '"kv_tokens":65536' "$rows" && ! pgrep -f -- "--port ($1|$2) " >/dev/null; then
        result="1 passed, 0 failed"
    else
        failed=1
    fi
    echo "$result" | tee "$tmp/experiment.out"
}

# The two tools before the same servers, which it starts itself.
run_agreement() {
    "$venv/bin/python" "$here/agreement.py" "$venv" "$forebay" | tee "$tmp/agreement.out" || failed=1
}

# What a sequence takes of the KV cache. It starts its servers itself, one after the other.
run_windows() { # PORT PORT
    "$venv/bin/python" "$here/windows.py" "$venv" "$forebay" "$1" "$2" | tee "$tmp/windows.out" || failed=1
}

failed=0
run_checks() { # SCRIPT PART
    if ! "$venv/bin/python" "$here/$1" "$2" | tee "$tmp/$2.out"; then
        failed=1
        if [ -s "$tmp/forebay.log" ]; then
            echo "the end of forebay's log:"
            tail -n 40 "$tmp/forebay.log"
        fi
    fi
}

starting=()
read -r a b c d e f g h i j k l m n o p q r < <(free_ports 18)

echo "== two vLLM servers behind Forebay"
start_engine "$a"
start_engine "$b"
wait_engines
start_forebay "http://127.0.0.1:$a" "http://127.0.0.1:$b"
run_checks check.py main
stop_forebay
stop_engines

echo "== one vLLM server with --max-num-seqs 1 behind Forebay"
MAX_LEN=8192 start_engine "$c" --max-num-seqs 1
MAX_LEN=8192 start_engine "$d" --max-num-seqs 1
wait_engines
start_forebay "http://127.0.0.1:$c"
run_checks check.py queue
stop_forebay

echo "== two vLLM servers with --max-num-seqs 1 behind Forebay"
start_forebay "http://127.0.0.1:$c" "http://127.0.0.1:$d"
run_checks check.py affinity
stop_forebay
stop_engines

if [ "$direct" != 1 ]; then
    echo "== two vLLM servers whose KV caches hold all shared prefixes only together"
    KV_CACHE=16M start_engine "$o"
    KV_CACHE=16M start_engine "$p"
    wait_engines
    start_forebay "http://127.0.0.1:$o" "http://127.0.0.1:$p"
    run_checks affinity.py prefixes
    stop_forebay
    stop_engines

    health='[health]
interval = "500ms"
timeout = "500ms"
stall_timeout = "2s"
ejection = { base = "2s", max = "4s" }'

    echo "== two that die"
    start_engine "$g" --max-num-seqs 8
    start_engine "$h" --max-num-seqs 8
    wait_engines
    start_forebay "http://127.0.0.1:$g" "http://127.0.0.1:$h"
    run_checks failures.py deaths
    stop_forebay
    stop_engines

    if [ "$size" = full ]; then
        echo "== two that shed load and prefill in small chunks, the second with --shutdown-timeout"
        export MAX_LEN=32000
        full=(--max-num-seqs 4 --max-num-queued-reqs 4 --max-num-batched-tokens 64)
        start_engine "$e" "${full[@]}"
        start_engine "$f" "${full[@]}" --shutdown-timeout 30
        wait_engines
        unset MAX_LEN
        start_forebay "http://127.0.0.1:$e" "http://127.0.0.1:$f"
        run_checks failures.py full
        stop_forebay
        stop_engines

        # routing.py starts its own Forebays, one for each policy.
        export FOREBAY=$forebay
        echo "== two vLLM servers, the second with --max-num-seqs 1, behind two policies"
        start_engine "$i"
        start_engine "$j" --max-num-seqs 1
        wait_engines
        export FOREBAY_VLLM_URLS=http://127.0.0.1:$i,http://127.0.0.1:$j
        run_checks routing.py streams
        stop_engines

        echo "== the same with embeddings"
        start_engine "$k" --runner pooling --convert embed
        start_engine "$l" --runner pooling --convert embed --max-num-seqs 2
        wait_engines
        export FOREBAY_VLLM_URLS=http://127.0.0.1:$k,http://127.0.0.1:$l
        run_checks routing.py embeddings
        stop_engines

        echo "== forebay bench beside vllm bench serve"
        run_agreement

        echo "== two vLLM servers that an experiment starts itself"
        run_experiment "$m" "$n"

        echo "== models with sliding windows, beside forebay plan"
        run_windows "$q" "$r"
    fi
fi

# Every part that ran left its own last line; which parts run depends on the size.
for out in "$tmp"/*.out; do tail -n 1 "$out"; done | awk '{ p += $1; f += $3 } END { print p " passed, " f " failed" }'
exit "$failed"
