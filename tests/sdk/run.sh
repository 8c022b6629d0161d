#!/usr/bin/env bash
# What the clients of OpenAI and Anthropic make of answers that Forebay had to cut.
#
#   run.sh setup CACHE           installs them, at the versions written here, under CACHE (170 MB); exit 1 if that cannot be done
#   run.sh check CACHE FOREBAY   tries them all (check.py); the last line is `N passed, N failed`
#
# Without node and npm the clients for JavaScript are left out, and it is said so.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${2:?usage: run.sh setup|check CACHE [FOREBAY]}
export PYTHONDONTWRITEBYTECODE=1

have_node() { command -v node >/dev/null 2>&1 && command -v npm >/dev/null 2>&1; }

setup() {
    mkdir -p "$cache/node"
    if ! cmp -s "$here/requirements.txt" "$cache/requirements.txt"; then
        python3 -m venv --clear "$cache/python"
        "$cache/python/bin/pip" install -q --disable-pip-version-check -r "$here/requirements.txt"
        cp "$here/requirements.txt" "$cache/"
    fi
    if have_node && ! cmp -s "$here/package.json" "$cache/node/installed.json"; then
        cp "$here/package.json" "$cache/node/"
        (cd "$cache/node" && npm install --no-audit --no-fund --ignore-scripts --loglevel=error)
        cp "$here/package.json" "$cache/node/installed.json"
    fi
}

case ${1:-} in
setup) setup ;;
check)
    modules=()
    if have_node; then modules=("$cache/node"); else echo "no node here: the clients for JavaScript are left out"; fi
    "$cache/python/bin/python" "$here/check.py" "${3:?the binary}" "$here/../fixtures/vllm-0.32.0/http" "${modules[@]}"
    ;;
*)
    echo "usage: run.sh setup|check CACHE [FOREBAY]" >&2
    exit 2
    ;;
esac
