#!/usr/bin/env bash
# Runs an experiment of config/experiments with a real vLLM on a GPU machine that has no network, in as many calls as it takes.
#
#   run.sh PARTS EXPERIMENT [argument of `forebay compare`, or of the script...]
#
# PARTS       a folder with parts/*/{site.tar.xz.NN,count,site.tar.xz.sha256}, a Python tree that has vLLM, and
#             tools/make_models.py, which writes the model folders.
# EXPERIMENT  a name in config/experiments, without .toml, or a file; or a script: peers.sh or failures.sh beside this one, with its arguments. It is
#             given the environment that servers need and, as OUT, a folder. All that it leaves there comes back as results.tar.gz.
#
# Environment: FOREBAY (default target/release/forebay), PYTHON (python3), BASE (/tmp/forebay-gpu: what is unpacked, compiled and
# measured; later calls on the machine find it), OUT (what comes back: rows.jsonl.xz.NN, pieces of one file of at most 15 MB
# each; logs.tar.gz, with the machine's description; course.txt; and the report of what there is so far), RESUME (an earlier call's
# OUT, to go on from on a fresh machine), LIMIT (peers.sh: seconds for the call). Give --stop-after less than the call's own limit: unpacking takes about 10 s of it,
# once, and packing up about 10 s; the time that unpacking took is taken off here.
# Exit code: that of `forebay compare` (75: the time is over, call again).
set -uo pipefail
begin=$SECONDS
parts=${1:?usage: run.sh PARTS EXPERIMENT [argument...]}
name=${2:?usage: run.sh PARTS EXPERIMENT [argument...]}
shift 2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
forebay=${FOREBAY:-$root/target/release/forebay}
base=${BASE:-/tmp/forebay-gpu}
out=${OUT:-$base/out}
file=$name
[[ -f $file ]] || file=$root/config/experiments/$name.toml
name=$(basename "${file%.*}")
results=$base/results/$name
export PYTHON=${PYTHON:-python3} MODELS=$base/models CACHE=$base/cache
mkdir -p "$results" "$out" "$CACHE"
say() { printf '[%3d s] %s\n' $((SECONDS - begin)) "$*" >&2; }

# NVLink multicast stays off for all that is started here, whatever an experiment says: a program that uses it can put GPUs
# that others share out of service.
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1
export PYTHONPATH=$base/site${PYTHONPATH:+:$PYTHONPATH} XDG_CACHE_HOME=$CACHE/xdg
if ! "$PYTHON" -c 'import ctypes; ctypes.CDLL("libnvidia-ml.so.1")' 2>/dev/null; then
  # the driver's libraries may lie beside its programs, unknown to the loader
  for d in lib64 lib; do
    d=$(dirname "$(dirname "$(command -v nvidia-smi || echo none/none)")")/$d
    [[ -e $d/libnvidia-ml.so.1 ]] && export LD_LIBRARY_PATH=$d${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  done
fi

unpack() {
  [[ -e $base/site/.ready ]] && return 0
  local count have
  count=$(cat "$parts"/parts/*/count | head -n 1) || return 1
  have=$(find "$parts/parts" -name 'site.tar.xz.[0-9][0-9]' | wc -l)
  ((have == count)) || { say "$have of $count parts are here"; return 1; }
  # by the parts' numbers, wherever they lie
  find "$parts/parts" -name 'site.tar.xz.[0-9][0-9]' -printf '%f %p\n' | sort | cut -d' ' -f2- |
    xargs -d '\n' cat >"$base/site.tar.xz"
  (cd "$base" && sha256sum -c --quiet -) <"$(find "$parts/parts" -name site.tar.xz.sha256 | head -n 1)" || return 1
  rm -rf "$base/site.new" && mkdir "$base/site.new"
  if command -v xz >/dev/null; then
    tar -xJf "$base/site.tar.xz" -C "$base/site.new" || return 1
  else
    "$PYTHON" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="tar")' \
      "$base/site.tar.xz" "$base/site.new" || return 1
  fi
  timeout 90 "$PYTHON" -m compileall -q -j 0 "$base/site.new" >/dev/null 2>&1
  rm -rf "$base/site" "$base/site.tar.xz" && mv "$base/site.new" "$base/site"
  "$PYTHON" "$parts/tools/make_models.py" "$MODELS" >/dev/null || return 1
  touch "$base/site/.ready"
  say "unpacked $(du -sm "$base/site" | cut -f1) MB; model folders made"
}

pack() {
  if [[ $file == *.sh ]]; then
    tar -czf "$out/results.tar.gz" -C "$results" .
    return
  fi
  [[ -e $results/rows.jsonl ]] || : >"$results/rows.jsonl"
  rm -f "$out"/rows.jsonl.xz.*
  if command -v xz >/dev/null; then
    xz -T0 -3 -c "$results/rows.jsonl"
  else
    "$PYTHON" -c 'import lzma, shutil, sys
with open(sys.argv[1], "rb") as a, lzma.open(sys.stdout.buffer, "wb", preset=3) as b: shutil.copyfileobj(a, b)' \
      "$results/rows.jsonl"
  fi | split -b 15m -d -a 2 - "$out/rows.jsonl.xz."
  (cd "$results" && tar -czf "$out/logs.tar.gz" --ignore-failed-read logs machine.txt took.jsonl 2>/dev/null)
}

restore() {
  [[ -n ${RESUME:-} ]] || return 0
  if [[ $file == *.sh ]]; then
    [[ -n $(ls "$results") ]] || tar -xzf "$RESUME/results.tar.gz" -C "$results"
    return
  fi
  [[ ! -e $results/rows.jsonl ]] || return 0
  cat "$RESUME"/rows.jsonl.xz.* | "$PYTHON" -c 'import lzma, shutil, sys
with lzma.open(sys.stdin.buffer) as a, open(sys.argv[1], "wb") as b: shutil.copyfileobj(a, b)' \
    "$results/rows.jsonl" || return 1
  tar -xzf "$RESUME/logs.tar.gz" -C "$results" || return 1
  say "goes on from $RESUME"
}

unpack || { say "nothing to run: see the head of this script for what PARTS must hold"; exit 3; }
restore || exit 3

# what is left of --stop-after, in seconds
args=()
while (($#)); do
  if [[ $1 == --stop-after && $# -gt 1 ]]; then
    limit=$2
    case $limit in
      *m) limit=$((${limit%m} * 60)) ;;
      *s) limit=${limit%s} ;;
    esac
    args+=(--stop-after "$((limit - (SECONDS - begin)))s")
    shift 2
  else
    args+=("$1")
    shift
  fi
done

child=
# shellcheck disable=SC2317 # they are traps
stop() { [[ $child ]] && kill -TERM "$child" 2>/dev/null && wait "$child"; pack; exit 143; }
trap stop INT TERM
if [[ $file == *.sh ]]; then
  [[ -z ${LIMIT:-} ]] || export LIMIT=$((LIMIT - (SECONDS - begin)))
  FOREBAY=$forebay BASE=$base OUT=$results bash "$file" "${args[@]}" 2> >(tee -a "$results/logs.txt" >&2) &
else
  "$forebay" compare "$file" --out "$results" "${args[@]}" 2> >(tee -a "$results/logs.txt" >&2) &
fi
child=$!
wait "$child"
status=$?
child=
cp "$results/logs.txt" "$out/course.txt" 2>/dev/null
cp "$results/said.txt" "$out/" 2>/dev/null
pack
if [[ $file != *.sh ]]; then # what there is so far, also where the time ended first
  timeout 60 "$forebay" compare "$results/rows.jsonl" --markdown "$out/report.md" >"$out/report.txt" 2>&1
fi
say "exit code $status; $(du -ch "$out"/* | tail -n 1 | cut -f1) to bring back"
exit "$status"
