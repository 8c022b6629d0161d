#!/usr/bin/env bash
# TLS of a running Forebay, as other programs see it: openssl, curl and sslscan. A tool that is not installed is named and skipped.
#
#   tests/tls/run.sh [FOREBAY]      the binary (default: target/release/forebay)
#
# Everything runs on loopback, in a folder for temporary files, and ends with the script. Takes ten seconds.
# VLLM=URL   asks this server too, such as a vLLM with --ssl-certfile; CA, CERT and KEY name its authority, and a client's pair.
set -euo pipefail
forebay=$(realpath "${1:-target/release/forebay}")
folder=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
cd "$folder"
umask 077
failed=0 skipped=()

need() { command -v "$1" >/dev/null || { echo "run.sh: $1 is not installed, and nothing can be checked without it" >&2; exit 2; }; }
need openssl
need curl

# check WHAT WANTED GOT: a shell pattern
check() {
    # shellcheck disable=SC2053
    if [[ $3 == $2 ]]; then echo "ok    $1"; else echo "FAIL  $1: wanted $2, got $3"; failed=1; fi
}

ca() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.crt" -days 30 -subj "/CN=$1" \
        -addext basicConstraints=critical,CA:TRUE 2>>openssl.log
}
# leaf NAME AUTHORITY EXTENSION DAYS
leaf() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.csr" -subj "/CN=$1" 2>>openssl.log
    openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -days "$4" -out "$1.crt" -extfile <(echo "$3") 2>>openssl.log
}
names=subjectAltName=DNS:forebay.test,IP:127.0.0.1
ca ca
ca other
leaf server ca "$names" 10
leaf server2 ca "$names" 20
leaf expired ca "$names" 0
leaf client ca extendedKeyUsage=clientAuth 10
leaf stranger other extendedKeyUsage=clientAuth 10

cp server.crt tls.crt
cp server.key tls.key
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
engine=$(port) data=$(port) admin=$(port)
{
    echo "[listen]"
    echo "address = \"127.0.0.1:$data\""
    echo "header_timeout = \"2s\""
    echo "tls = { cert_file = \"tls.crt\", key_file = \"tls.key\" }"
    echo "[admin]"
    echo "address = \"127.0.0.1:$admin\""
    echo "tls = { cert_file = \"tls.crt\", key_file = \"tls.key\", client_ca_file = \"ca.crt\" }"
    echo "[[pools]]"
    echo "model = \"tiny\""
    if [ -n "${VLLM:-}" ]; then
        echo "tls = { ca_file = \"${CA:?CA names the file of the server\'s authority}\"${CERT:+, cert_file = \"$CERT\", key_file = \"${KEY:?}\"} }"
        echo "backends = [{ url = \"$VLLM\" }]"
    else
        echo "backends = [{ url = \"http://127.0.0.1:$engine\" }]"
    fi
} >forebay.toml
if [ -z "${VLLM:-}" ]; then
    "$forebay" sim --port "$engine" --served-model-name tiny >sim.log 2>&1 &
    pids+=($!)
fi
"$forebay" check forebay.toml
"$forebay" serve --config forebay.toml >forebay.log 2>&1 &
pids+=($!)

get() { curl -s -m 10 --resolve "forebay.test:$data:127.0.0.1" --resolve "wrong.test:$data:127.0.0.1" --cacert ca.crt "$@" || true; }
for _ in $(seq 100); do
    [ "$(get -o /dev/null -w '%{http_code}' "https://forebay.test:$data/v1/models")" = 200 ] && break
    sleep 0.1
done

chat='{"model":"tiny","stream":true,"max_tokens":8,"messages":[{"role":"user","content":"hello"}]}'
post=(-H 'content-type: application/json' -d "$chat")
check "a stream over HTTP/2" "*DONE*2/200" "$(get "${post[@]}" -w '%{http_version}/%{http_code}' "https://forebay.test:$data/v1/chat/completions" | tr '\n' ' ')"
check "a stream over HTTP/1.1" "*DONE*1.1/200" "$(get --http1.1 "${post[@]}" -w '%{http_version}/%{http_code}' "https://forebay.test:$data/v1/chat/completions" | tr '\n' ' ')"
check "a name that the certificate does not have" 60 "$(get -o /dev/null -w '%{exitcode}' "https://wrong.test:$data/health")"
check "plain HTTP on the port of TLS" 000 "$(get -o /dev/null -w '%{http_code}' "http://forebay.test:$data/health")"

said() { openssl s_client -connect "127.0.0.1:$data" -CAfile ca.crt -verify_return_error "$@" </dev/null 2>&1 || true; }
check "TLS 1.3" "*TLSv1.3*" "$(said -tls1_3 | grep -m1 -o 'TLSv1.3')"
check "TLS 1.2" "*TLSv1.2*" "$(said -tls1_2 | grep -m1 -o 'TLSv1.2')"
check "no TLS 1.1" "*alert*" "$(said -tls1_1 -cipher DEFAULT@SECLEVEL=0 | grep -m1 alert)"
check "ALPN h2" "*h2" "$(said -alpn h2,http/1.1 | grep -m1 ALPN)"
check "ALPN http/1.1" "*http/1.1" "$(said -alpn http/1.1 | grep -m1 ALPN)"
check "resumption, TLS 1.2" 5 "$(openssl s_client -connect "127.0.0.1:$data" -tls1_2 -reconnect </dev/null 2>/dev/null | grep -c '^Reused')"

code() { curl -s -o /dev/null -m 5 --cacert ca.crt -w '%{http_code}' "$@" "https://127.0.0.1:$admin/ready" || true; }
check "client certificates: none" 000 "$(code)"
check "client certificates: a stranger's" 000 "$(code --cert stranger.crt --key stranger.key)"
check "client certificates: ours" 200 "$(code --cert client.crt --key client.key)"

started=$SECONDS
{ exec 3<>"/dev/tcp/127.0.0.1/$data"; timeout 10 cat <&3 >/dev/null || true; exec 3>&-; }
check "a silent handshake ends within seconds" "[1-5]" $((SECONDS - started))

serial() { said | openssl x509 -noout -serial; }
old=$(serial) new=$(openssl x509 -noout -serial -in server2.crt)
cp server2.key tls.key
for _ in $(seq 100); do grep -q "is not the key of the certificate" forebay.log && break; sleep 0.1; done
check "a pair that does not fit is refused" "$old" "$(serial)"
cp server2.crt tls.crt
for _ in $(seq 100); do [ "$(serial)" = "$new" ] && break; sleep 0.1; done
check "the new pair is served" "$new" "$(serial)"

sed 's/tls\.crt/expired.crt/; s/tls\.key/expired.key/' forebay.toml >expired.toml
sleep 1 # "expired" is now a second out of date
check "check names a certificate that is out of date" "*out of date*" "$("$forebay" check expired.toml 2>&1 || true)"

if command -v sslscan >/dev/null; then
    scan=$(sslscan --no-colour "127.0.0.1:$data" 2>&1)
    for version in SSLv2 SSLv3 TLSv1.0 TLSv1.1; do
        check "sslscan: no $version" "*disabled*" "$(grep -m1 "^$version " <<<"$scan")"
    done
    for version in TLSv1.2 TLSv1.3; do check "sslscan: $version" "*enabled*" "$(grep -m1 "^$version " <<<"$scan")"; done
    check "sslscan: no Heartbleed" 0 "$(grep -c ' vulnerable to heartbleed' <<<"${scan//not vulnerable/safe}" || true)"
else
    skipped+=(sslscan)
fi

[ ${#skipped[@]} = 0 ] || echo "SKIPPED, not installed: ${skipped[*]} (Debian: apt-get install ${skipped[*]})"
[ "$failed" = 0 ] || { tail -n 20 forebay.log; exit 1; }
