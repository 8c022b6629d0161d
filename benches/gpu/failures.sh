#!/usr/bin/env bash
# What clients see when an engine on a GPU hangs, when 200 of them leave at once, and when an engine is killed: two real vLLM
# servers that share GPU 0, Forebay before them, tests/real_vllm/failures.py as the clients.
#
#   benches/gpu/run.sh PARTS benches/gpu/failures.sh        on a machine without a network; or, where vLLM is installed,
#   PYTHON=python3 MODELS=… FOREBAY=… benches/gpu/failures.sh OUT
#
# OUT gets said.txt (a line a check) and logs/. Environment: see servers.sh. Everything started here is ended here, by pid.
set -uo pipefail
out=${1:-${OUT:?usage: failures.sh OUT}}
. "$(dirname "${BASH_SOURCE[0]}")/servers.sh"
export RUN_DIR=$logs FOREBAY_MODEL=qwen7b

# The second one finds what the first has compiled.
start_server 8150
start_server 8151

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
