#!/usr/bin/env bash
# Discovery by DNS with a real server: dnsmasq, which the system's resolver asks, in a network and mount namespace of its own. One to 150
# addresses, a change, none, and a dead server, all under load.
#
#   tests/dns/run.sh [FOREBAY]      the binary (default: target/release/forebay)
#
# DNSMASQ=PATH   the server (default: dnsmasq of the PATH). Without one, Debian's package is downloaded and unpacked, not installed.
#
# Needs unshare, ip, python3, and root or unprivileged user namespaces. What is missing is named, and the script ends with code 77.
# Nothing leaves the namespace; all ends with the script. Takes half a minute.
set -euo pipefail
NAME=vllm.inference.svc PORT=8000
here=$(realpath "$(dirname "$0")")

skip() { echo "SKIPPED: $*" >&2; exit 77; }

# fetch FOLDER: dnsmasq and the libraries that it needs and the system may lack
fetch() {
    command -v apt-get >/dev/null || skip "dnsmasq is not installed, and there is no apt-get to download it"
    local packages=(dnsmasq-base libdbus-1-3 libidn2-0 libunistring2 libnetfilter-conntrack3 libnfnetlink0 libmnl0 libnettle8 libhogweed6
        libgmp10 libnftables1 libnftnl11 libjansson4 libxtables12 libedit2 libbsd0 libmd0 libtinfo6 libsystemd0) package
    for package in "${packages[@]}"; do
        (cd "$1" && apt-get -qq download "$package") >>"$1/apt.log" 2>&1 || true # another Debian names some otherwise
    done
    for package in "$1"/*.deb; do [[ ! -e $package ]] || dpkg -x "$package" "$1/unpacked"; done
    [[ -x $1/unpacked/usr/sbin/dnsmasq ]] || skip "dnsmasq is not installed and cannot be downloaded: $(tail -n 1 "$1/apt.log")"
}

if [[ -z ${INSIDE:-} ]]; then
    forebay=$(realpath "${1:-target/release/forebay}")
    for tool in unshare ip mount python3; do command -v "$tool" >/dev/null || skip "$tool is not installed"; done
    own=(); ((EUID == 0)) || own=(--map-root-user)
    unshare --net --mount "${own[@]}" true 2>/dev/null || skip "this host allows no namespaces of its own"
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    libraries=
    if [[ -z ${DNSMASQ:-} ]] && ! DNSMASQ=$(PATH=$PATH:/usr/sbin command -v dnsmasq); then
        fetch "$folder"
        DNSMASQ=$folder/unpacked/usr/sbin/dnsmasq
        libraries=$(find "$folder/unpacked" -name '*.so*' -printf '%h\n' | sort -u | tr '\n' ':')
    fi
    INSIDE=$(readlink /proc/self/ns/net) DNSMASQ=$DNSMASQ LIBRARIES=$libraries \
        unshare --net --mount "${own[@]}" "$here/run.sh" "$forebay" "$folder"
    exit
fi
# What follows writes over the resolver's files, which must be those of the namespace.
[[ $INSIDE != "$(readlink /proc/self/ns/net)" ]] || { echo "run.sh: not in a namespace of its own" >&2; exit 2; }
forebay=$1
cd "$2"
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait 2>/dev/null || true' EXIT
failed=0
# check WHAT WANTED GOT: a shell pattern
check() {
    # shellcheck disable=SC2053
    if [[ $3 == $2 ]]; then echo "ok    $1"; else echo "FAIL  $1: wanted $2, got $3"; failed=1; fi
}
# until_is SECONDS WANTED COMMAND...: what COMMAND says in the end
until_is() {
    local end=$((SECONDS + $1)) wanted=$2 got; shift 2
    while got=$("$@"); [[ $got != "$wanted" ]] && ((SECONDS < end)); do sleep 0.1; done
    echo "$got"
}

ip link set lo up
echo 'nameserver 127.0.0.1' >resolv.conf
echo 'hosts: files dns' >nsswitch.conf
mount --bind resolv.conf /etc/resolv.conf
mount --bind nsswitch.conf /etc/nsswitch.conf
: >hosts
dnsmasq() {
    LD_LIBRARY_PATH=$LIBRARIES "$DNSMASQ" --no-daemon --conf-file=/dev/null --no-resolv --no-hosts --addn-hosts="$PWD/hosts" --local=/svc/ \
        --local-ttl=1 --listen-address=127.0.0.1 --bind-interfaces --user=root >>dnsmasq.log 2>&1 &
    server=$!
    pids+=("$server")
}
# addresses FIRST LAST: the name has 127.0.1.FIRST to 127.0.1.LAST
addresses() {
    local i
    for i in $(seq "$1" "$2"); do echo "127.0.1.$i $NAME"; done >hosts
    kill -HUP "$server"
}
dnsmasq
# One simulated server listens on every address of loopback: each address is a backend of its own.
"$forebay" sim --host 0.0.0.0 --port "$PORT" --served-model-name m >sim.log 2>&1 &
pids+=($!)
{
    echo "[[pools]]"
    echo "model = \"m\""
    echo "policy = \"round_robin\""
    echo "discover = { dns = \"$NAME:$PORT\", interval = \"200ms\" }"
} >forebay.toml
sleep 0.3 # dnsmasq has its handler of SIGHUP
addresses 1 1
"$forebay" serve --config forebay.toml --listen 127.0.0.1:8080 --admin 127.0.0.1:9090 >forebay.log 2>&1 &
pids+=($!)

metrics() {
    python3 -c 'import urllib.request; print(urllib.request.urlopen("http://127.0.0.1:9090/metrics", timeout=10).read().decode())' 2>/dev/null || true
}
# serving: how many backends take requests
serving() { metrics | grep -c '^forebay_backend_state{.*state="healthy"} 1' || true; }
errors() { metrics | sed -n 's/^forebay_discovery_errors_total{.*reason="unresolved"} //p'; }
more_errors() { local now; now=$(errors); if [[ -n $now ]] && ((now > $1)); then echo yes; fi; }
check "one address" 1 "$(until_is 10 1 serving)"

python3 "$here/load.py" >load.log 2>&1 &
load=$!
pids+=("$load")
addresses 1 3
check "three" 3 "$(until_is 10 3 serving)"
addresses 1 150
check "150, which do not fit into a datagram" 150 "$(until_is 30 150 serving)"
addresses 100 101
check "two of them are left" 2 "$(until_is 30 2 serving)"
before=$(errors)
: >hosts; kill -HUP "$server"
check "none: an error is counted" yes "$(until_is 10 yes more_errors "$before")"
check "none: the two stay" 2 "$(serving)"
kill "$server"; wait "$server" 2>/dev/null || true
before=$(errors)
check "the server is dead: an error is counted" yes "$(until_is 60 yes more_errors "$before")"
check "the server is dead: the two stay" 2 "$(serving)"
dnsmasq
sleep 0.3
addresses 1 4
check "the server is back, with four" 4 "$(until_is 60 4 serving)"
: >stop
wait "$load"
check "requests under all this" '0 of [1-9]*' "$(cat counts)"
echo "failed requests: $(cat counts)"
[[ $failed == 0 ]] || { tail -n 20 forebay.log dnsmasq.log load.log; exit 1; }
