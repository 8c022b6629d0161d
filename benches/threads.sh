#!/usr/bin/env bash
# What the number of worker threads costs: Forebay before two simulated servers that give some 30,000 tokens/s between them, 300 streams at once,
# with each number of threads in turns. Prints Forebay's CPU time for a token and what the clients saw.
#
#   benches/threads.sh THREADS ROUNDS       THREADS such as "1 2 4 8 16"
#
# Environment: FOREBAY (default target/release/forebay). A machine with many cores, since the servers and the clients need some of their own.
set -euo pipefail
threads=${1:?usage: threads.sh THREADS ROUNDS}
rounds=${2:?usage: threads.sh THREADS ROUNDS}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
forebay=${FOREBAY:-$root/target/release/forebay}
dir=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; rm -rf "$dir"' EXIT
for port in 9301 9302; do
  "$forebay" sim --profile h200-tp1-qwen7b --port $port --served-model-name m >"$dir/$port.log" 2>&1 &
  pids+=($!)
done
cat >"$dir/forebay.toml" <<'TOML'
[listen]
address = "127.0.0.1:9303"
[admin]
address = "127.0.0.1:9304"
[[pools]]
model = "m"
policy = "least_inflight"
backends = [{ url = "http://127.0.0.1:9301" }, { url = "http://127.0.0.1:9302" }]
TOML
admin() { (exec 3<>/dev/tcp/127.0.0.1/9304 && printf 'GET %s HTTP/1.0\r\n\r\n' "$1" >&3 && cat <&3) 2>/dev/null; }
metric() { admin /metrics | awk -v n="^$1[ {]" '$0 ~ n { s += $NF } END { print s }'; }
for _ in $(seq "$rounds"); do
  for count in $threads; do
    "$forebay" serve --config "$dir/forebay.toml" --threads "$count" >"$dir/forebay.log" 2>&1 &
    proxy=$!
    pids+=($proxy)
    until admin /ready | grep '^HTTP/1.. 200' >/dev/null; do kill -0 $proxy; sleep 0.1; done
    "$forebay" bench http://127.0.0.1:9303 --num-prompts 300 --input-len 100 --output-len 600 --ignore-eos --no-scrape --json >"$dir/load.json"
    cpu=$(metric process_cpu_seconds_total) tokens=$(metric forebay_output_tokens_total)
    switches=$(cat /proc/$proxy/task/*/status | awk '/ctxt/ { s += $2 } END { print s }')
    python3 - "$dir/load.json" "$count" "$cpu" "$tokens" "$switches" <<'PY'
import json, sys
path, threads, cpu, tokens, switches = sys.argv[1], *map(float, sys.argv[2:])
a = json.load(open(path))["runs"][0]["parts"][0]
print(f"{threads:2.0f} threads: {cpu / tokens * 1e6:5.1f} us of CPU and {switches / tokens:.2f} switches a token; "
      f"{a['output_tokens_per_second']:,.0f} tokens/s, TTFT median {a['ttft_ms']['p50']:.1f} P99 {a['ttft_ms']['p99']:.1f} ms, "
      f"ITL median {a['itl_ms']['p50']:.2f} P99 {a['itl_ms']['p99']:.2f} ms", flush=True)
PY
    kill $proxy
    wait $proxy || true
  done
done
