#!/usr/bin/env bash
# Traces with real software: client → Forebay → real vLLM servers → a real collector (rotel). The spans are read back from the collector:
# do the parents lead from the client to vLLM, and is vLLM's time to the first token no longer than Forebay's?
#
#   tests/traces/run.sh VENV [FOREBAY]      VENV: what tests/real_vllm/setup.sh made; FOREBAY (default: target/release/forebay)
#
# FOREBAY_TOOLS   where rotel is or goes (default $HOME/.cache/forebay/tools; 90 MB, from PyPI's package rotel).
# What cannot be had is named, and the script ends with code 77. Everything runs on loopback and ends with it. Takes a minute.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=$(cd "${1:?usage: run.sh VENV [FOREBAY]}" && pwd)
forebay=$(realpath "${2:-target/release/forebay}")
tools=${FOREBAY_TOOLS:-$HOME/.cache/forebay/tools}/rotel
work=$(mktemp -d)
export RUN_DIR=$work
pids=() engines=()

finish() {
    local status=$?
    trap - EXIT INT TERM
    kill "${pids[@]}" 2>/dev/null || true
    for port in "${engines[@]}"; do bash "$here/../real_vllm/serve.sh" --stop "$port" >/dev/null & done
    wait
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM
skip() { echo "SKIPPED: $1"; exit 77; }

[ -x "$venv/bin/vllm" ] || skip "no vLLM in $venv (tests/real_vllm/setup.sh makes one)"
command -v python3 >/dev/null || skip "python3 is not installed"
{ [ -x "$tools/bin/pip" ] || python3 -m venv "$tools"; } >/dev/null 2>&1 || skip "python3 has no venv"
"$tools/bin/pip" install -q --disable-pip-version-check rotel==0.0.1a15 >"$work/pip.log" 2>&1 || skip "rotel cannot be installed here"
agent=$("$tools/bin/python" -c 'import pathlib, rotel; print(pathlib.Path(rotel.__file__).parent / "rotel-agent")')
# The collector links the shared library of its Python.
LD_LIBRARY_PATH=$("$tools/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
if LD_LIBRARY_PATH=$LD_LIBRARY_PATH ldd "$agent" | grep -q 'not found'; then skip "rotel needs libpython (Debian: libpython3.x)"; fi

read -r http grpc data admin e1 e2 < <(python3 - <<'PY'
import socket
held = [socket.socket() for _ in range(6)]
for one in held:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in held))
PY
)
until_ok() { # WHAT COMMAND...
    for _ in $(seq 300); do "${@:2}" >/dev/null 2>&1 && return 0; sleep 0.1; done
    echo "run.sh: $1 did not come up" >&2
    tail -n 5 "$work"/*.log >&2
    exit 1
}
LD_LIBRARY_PATH=$LD_LIBRARY_PATH NO_COLOR=1 "$agent" start --exporter blackhole --debug-log traces --debug-log-verbosity detailed \
    --otlp-grpc-endpoint "127.0.0.1:$grpc" --otlp-http-endpoint "127.0.0.1:$http" \
    --pid-file "$work/agent.pid" --log-file "$work/agent.log" >"$work/spans.log" 2>&1 &
pids+=($!)
until_ok "the collector" bash -c "true >/dev/tcp/127.0.0.1/$http && true >/dev/tcp/127.0.0.1/$grpc"
engines=("$e1" "$e2")
starting=()
for port in "${engines[@]}"; do
    bash "$here/../real_vllm/serve.sh" "$venv" "$port" tiny --otlp-traces-endpoint "http://127.0.0.1:$grpc" &
    starting+=($!)
done
for one in "${starting[@]}"; do wait "$one"; done

cat >"$work/forebay.toml" <<E
[listen]
address = "127.0.0.1:$data"
[admin]
address = "127.0.0.1:$admin"
[trace]
endpoint = "http://127.0.0.1:$http"
[[pools]]
model = "tiny"
policy = "round_robin"
backends = [{ url = "http://127.0.0.1:$e1" }, { url = "http://127.0.0.1:$e2" }]
E
"$forebay" serve --config "$work/forebay.toml" >"$work/forebay.log" 2>&1 &
pids+=($!)
until_ok Forebay curl -sf "http://127.0.0.1:$data/ready"
"$tools/bin/python" "$here/check.py" "http://127.0.0.1:$data" "http://127.0.0.1:$admin" "$work/spans.log"
