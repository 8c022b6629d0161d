"""Discovery against a real API server: what pods may do, under load, and what the server may do. `run.sh` starts it.

There is no kubelet and no controller: this script binds pods, gives them addresses, makes them Ready and writes the EndpointSlice of their
Service, and each pod is a simulated vLLM server on its address. Every check waits for a condition with a limit. Usage: check.py FOREBAY (in the folder with the cluster's files)
"""
import json, os, re, signal, ssl, subprocess, sys, time, urllib.error, urllib.request

import gateway
from relay import Relay

FOREBAY = sys.argv[1]
HERE = os.path.dirname(os.path.abspath(__file__))
ADMIN = open("admin.token").read().strip()
TLS = ssl.create_default_context(cafile="pki/apiserver.crt")
PODS = "/api/v1/namespaces/inference/pods"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/inference/endpointslices"
INFERENCE_POOLS = "/apis/inference.networking.k8s.io/v1/namespaces/inference/inferencepools"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
ROLES = "/apis/rbac.authorization.k8s.io/v1/namespaces/inference"
MODELS = ["m", "by-service", "by-pool", "by-relay"]
FIRST, SECOND, RELAY = 16443, 16444, 16480
LIMIT = 30
failed = []


def api(method, path, body=None, kind="application/json", port=FIRST):
    headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": kind}
    request = urllib.request.Request(f"https://127.0.0.1:{port}{path}", method=method, headers=headers)
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(request, data, timeout=10, context=TLS) as answer:
        return json.load(answer)


def until(what, is_so, limit=LIMIT):
    end = time.monotonic() + limit
    while True:
        try:
            if is_so():
                print(f"ok    {what}", flush=True)
                return
        except OSError:
            pass
        if time.monotonic() > end:
            print(f"FAIL  {what}: not within {limit} s", flush=True)
            failed.append(what)
            return
        time.sleep(0.05)


def apiserver(port):
    with open("apiserver.args") as file:
        arguments = file.read().split("\n")[:-1]
    log = open(f"apiserver-{port}.log", "a")
    process = subprocess.Popen([*arguments, "--secure-port", str(port)], stdout=log, stderr=log)

    def ready():
        try:
            url = f"https://127.0.0.1:{port}/readyz"
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {ADMIN}"})
            return urllib.request.urlopen(request, timeout=5, context=TLS).status == 200
        except OSError:
            if process.poll() is not None:
                sys.exit(f"the API server has ended; its log is {log.name}")
            return False

    until(f"the API server on port {port} is ready", ready, 90)
    return process


class Pods:
    """The pods, each with a simulated server at its address."""

    def __init__(self):
        self.servers = {}
        # What the slice of the Service says of each pod.
        self.endpoints = {}

    def serve(self, name, address, port):
        arguments = [FOREBAY, "sim", "--host", address, "--port", str(port), "--served-model-name", *MODELS]
        self.servers[name] = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def answers():
            return urllib.request.urlopen(f"http://{address}:{port}/health", timeout=1).status == 200

        until(f"the server of {name} answers", answers)

    def add(self, name, host, ready=True):
        address = f"10.244.0.{host}"
        self.serve(name, address, 8000)
        container = {"name": "vllm", "image": "vllm", "ports": [{"name": "http", "containerPort": 8000}]}
        api("POST", PODS, {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "vllm"}},
            "spec": {"nodeName": "gpu-1", "containers": [container], "automountServiceAccountToken": False},
        })
        self.status(name, address, ready)

    def status(self, name, address, ready):
        condition = {"type": "Ready", "status": "True" if ready else "False"}
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [condition]}
        api("PATCH", f"{PODS}/{name}/status", {"status": status}, "application/merge-patch+json")
        self.endpoint(name, address, {"ready": ready, "serving": ready, "terminating": False})

    def label(self, name, app):
        api("PATCH", f"{PODS}/{name}", {"metadata": {"labels": {"app": app}}}, "application/merge-patch+json")
        if app is None:
            self.no_endpoint(name)
        else:
            self.endpoint(name, "10.244.0." + name[-1], {"ready": True, "serving": True, "terminating": False})

    def terminate(self, name):
        api("DELETE", f"{PODS}/{name}", {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 30})
        address = self.endpoints[name]["addresses"][0]
        self.endpoint(name, address, {"ready": False, "serving": True, "terminating": True})

    def remove(self, name, port=FIRST):
        api("DELETE", f"{PODS}/{name}", {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}, port=port)
        self.no_endpoint(name, port)

    def endpoint(self, name, address, conditions):
        target = {"kind": "Pod", "namespace": "inference", "name": name}
        self.endpoints[name] = {"addresses": [address], "conditions": conditions, "nodeName": "gpu-1", "targetRef": target}
        self.write_slice()

    def no_endpoint(self, name, port=FIRST):
        self.endpoints.pop(name, None)
        self.write_slice(port)

    def write_slice(self, port=FIRST):
        endpoints = list(self.endpoints.values())
        api("PATCH", f"{SLICES}/vllm", {"endpoints": endpoints}, "application/merge-patch+json", port)

    def end(self, name):
        server = self.servers.pop(name)
        server.kill()
        server.wait()


def metrics():
    return urllib.request.urlopen("http://127.0.0.1:9090/metrics", timeout=5).read().decode()


def serving(model):
    found = re.findall(r'^forebay_backend_state\{(.*)backend="10\.244\.0\.(\d+):(800\d)",state="healthy"\} 1', metrics(), re.M)
    # A second port of a pod is a server of its own: 10.244.0.1:8001 is 101.
    return sorted(int(host) + 100 * (port == "8001") for labels, host, port in found if f'pool="{model}"' in labels)


def members():
    return len(set(re.findall(r'^forebay_backend_state\{.*backend="([^"]*)"', metrics(), re.M)))


def in_flight(host):
    found = re.findall(rf'^forebay_in_flight\{{.*backend="10\.244\.0\.{host}:8000".*\}} (\d+)', metrics(), re.M)
    return sum(int(count) for count in found)


def errors(reason):
    return sum(int(count) for count in re.findall(rf'^forebay_discovery_errors_total\{{.*reason="{reason}"\}} (\d+)', metrics(), re.M))


def expect(what, hosts, models=MODELS):
    until(f"{what}: {hosts} serve", lambda: all(serving(model) == hosts for model in models))


def source(model):
    fleet = json.load(urllib.request.urlopen("http://127.0.0.1:9090/api/fleet", timeout=5))
    return next(pool for pool in fleet["pools"] if pool["model"] == model)["arms"][0]["source"]


def scenario(pods):
    pods.status("vllm-1", "10.244.0.1", False)
    expect("Ready is false", [2, 3])
    pods.status("vllm-1", "10.244.0.1", True)
    expect("Ready again", [1, 2, 3])
    pods.label("vllm-1", None)
    expect("a label is taken off", [2, 3])
    pods.label("vllm-1", "vllm")
    expect("the label is back", [1, 2, 3])
    pods.terminate("vllm-3")
    expect("a pod is terminating", [1, 2])
    until("its streams have ended", lambda: in_flight(3) == 0)
    pods.end("vllm-3")
    pods.remove("vllm-3")
    until("it is gone", lambda: members() == 2)
    pods.add("vllm-4", 4)
    expect("scaled up again", [1, 2, 4])
    pods.status("vllm-1", "10.244.0.2", True)
    pods.status("vllm-2", "10.244.0.1", True)
    expect("two pods swap their addresses", [1, 2, 4])
    until("there are no others", lambda: members() == 3)


def inference_pool(pods):
    """What becomes of an InferencePool that is changed, and what gateways say of it."""
    def patch(body, part=""):
        api("PATCH", f"{INFERENCE_POOLS}/vllm{part}", body, "application/merge-patch+json")

    said = {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "2026-11-30T12:00:00Z"}
    patch({"status": {"parents": [{"parentRef": {"name": "edge"}, "conditions": [said]}]}}, "/status")
    wanted = {"gateway": "edge", "type": "Accepted", "status": "True", "reason": "Accepted", "message": ""}
    until("what the gateway says is shown", lambda: source("by-pool")["gateways"] == [wanted])
    for n in (1, 2, 4):
        pods.serve(f"vllm-{n} at a second port", f"10.244.0.{n}", 8001)
    patch({"spec": {"targetPorts": [{"number": 8000}, {"number": 8001}]}})
    expect("two ports of each pod", [1, 2, 4, 101, 102, 104], ["by-pool"])
    api("PATCH", f"{PODS}/vllm-2", {"metadata": {"labels": {"tier": "gold"}}}, "application/merge-patch+json")
    patch({"spec": {"selector": {"matchLabels": {"app": "vllm", "tier": "gold"}}}})
    # Its address was swapped with that of vllm-1.
    expect("other labels", [1, 101], ["by-pool"])
    patch({"spec": {"selector": {"matchLabels": {"tier": None}}, "targetPorts": [{"number": 8000}]}})
    expect("the pool is as before", [1, 2, 4])
    api("DELETE", f"{INFERENCE_POOLS}/vllm")
    until("a pool that is deleted is missed", lambda: errors("empty") >= 1)
    expect("its pods stay", [1, 2, 4])
    create_pool()
    until("it is back", lambda: source("by-pool")["error"] is None)


def create_pool():
    api("POST", INFERENCE_POOLS, {
        "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": {"name": "vllm"},
        "spec": {
            "selector": {"matchLabels": {"app": "vllm"}}, "targetPorts": [{"number": 8000}],
            "endpointPickerRef": {"name": "forebay", "port": {"number": 9002}, "failureMode": "FailClose"},
        },
    })


def define():
    """Makes the kinds that the server does not have, and the objects that discovery follows beside pods."""
    def serves(path):
        try:
            return api("GET", path) is not None
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise

    for definition in json.load(open("definitions.json")):
        group, kind = definition["spec"]["group"], definition["spec"]["names"]["plural"]
        path = f"/apis/{group}/v1/namespaces/inference/{kind}"
        if not serves(path):
            api("POST", DEFINITIONS, definition)
            until(f"the server serves {kind} of {group}", lambda: serves(path))
    api("POST", SLICES, {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [],
        "metadata": {"name": "vllm", "labels": {"kubernetes.io/service-name": "vllm"}},
        "ports": [{"name": "http", "port": 8000, "protocol": "TCP"}],
    })
    create_pool()
    api("POST", SLICES, {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [],
        "metadata": {"name": "forebay", "labels": {"kubernetes.io/service-name": "forebay"}},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })


def replicas():
    """The number of replicas, as a Service of Forebay's own has it."""
    def now(ready, unready):
        def endpoint(n, is_ready):
            return {"addresses": [f"10.244.1.{n}"], "conditions": {"ready": is_ready, "serving": is_ready, "terminating": False}}
        endpoints = [endpoint(n, n <= ready) for n in range(1, ready + unready + 1)]
        api("PATCH", f"{SLICES}/forebay", {"endpoints": endpoints}, "application/merge-patch+json")

    def counted():
        return json.load(urllib.request.urlopen("http://127.0.0.1:9090/api/fleet", timeout=5))["replicas"]

    def count():
        return int(re.search(r"^forebay_replicas (\d+)", metrics(), re.M)[1])

    until("nobody is Ready: the number is the configured one", lambda: count() == 1)
    now(2, 1)
    until("two of three replicas are Ready", lambda: count() == 2)
    now(3, 0)
    until("three replicas", lambda: count() == 3)
    now(0, 3)
    begun = time.monotonic()
    until("none is Ready, as it was told", lambda: counted()["source"]["age_seconds"] < time.monotonic() - begun)
    until("the number stays", lambda: count() == 3 == counted()["count"], 0)
    now(1, 0)
    until("one replica is left", lambda: count() == 1)


def expired(pods, relay):
    """A watch from a version that the server no longer has: one that was started anew has none from before that."""
    before = errors("expired")
    relay.old(True)
    # After what the server went through, lists are up to ten seconds apart.
    until("410: it is counted", lambda: errors("expired") >= before + 3, 60)
    expect("410", [1, 2])
    pods.status("vllm-1", "10.244.0.2", False)
    expect("410 to each watch, and the next list tells", [1])
    relay.old(False)
    pods.status("vllm-1", "10.244.0.2", True)
    expect("watches hold again", [1, 2])


def trouble(pods, first):
    first.send_signal(signal.SIGKILL)
    first.wait()
    until("the API server is killed: errors are counted", lambda: errors("connect") >= 6)
    expect("the API server is dead", [1, 2, 4])
    second = apiserver(SECOND)
    # Forebay asks the first, and cannot see what the second does. The server of the pod goes on, as one that ends in its grace period.
    pods.remove("vllm-4", SECOND)
    second.terminate()
    second.wait()
    first = apiserver(FIRST)
    expect("a deletion that no watch saw", [1, 2])
    binding = api("GET", f"{ROLES}/rolebindings/forebay")
    api("DELETE", f"{ROLES}/rolebindings/forebay")
    # A watch that is open stays open: the rights are asked for at its beginning.
    first.send_signal(signal.SIGKILL)
    first.wait()
    first = apiserver(FIRST)
    until("403: it is counted", lambda: errors("refused") >= 6, 60)
    expect("403", [1, 2])
    binding["metadata"] = {"name": "forebay"}
    api("POST", f"{ROLES}/rolebindings", binding)
    pods.status("vllm-1", "10.244.0.2", False)
    expect("the rights are back", [1])
    pods.status("vllm-1", "10.244.0.2", True)
    expect("and Ready again", [1, 2])
    return first


def record(pods):
    """Writes what the server says to a list and to a watch, for the fixtures of forebay-core."""
    folder, account = os.environ.get("RECORD"), open("forebay.token").read()
    if not folder:
        return

    def said(query, path=PODS, narrowed="labelSelector=app%3Dvllm"):
        url = f"https://127.0.0.1:{FIRST}{path}?{narrowed}&{query}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {account}", "Accept": "application/json"})
        return urllib.request.urlopen(request, timeout=30, context=TLS)

    listed = said("limit=250").read()
    version = json.loads(listed)["metadata"]["resourceVersion"]
    with open(f"{folder}/list.json", "wb") as file:
        file.write(listed)
    with open(f"{folder}/page.json", "wb") as file:
        file.write(said("limit=2").read())
    others = []
    for kind, path, narrowed in [
        ("slices", SLICES, "labelSelector=kubernetes.io%2Fservice-name%3Dvllm"), ("pool", INFERENCE_POOLS, "fieldSelector=metadata.name%3Dvllm"),
    ]:
        with open(f"{folder}/{kind}.json", "wb") as file:
            file.write(said("limit=250", path, narrowed).read())
        others.append((kind, said(f"watch=1&allowWatchBookmarks=true&timeoutSeconds=5&resourceVersion={version}", path, narrowed)))
    watch = said(f"watch=1&allowWatchBookmarks=true&timeoutSeconds=5&resourceVersion={version}")
    pods.status("vllm-1", "10.244.0.1", False)
    pods.status("vllm-1", "10.244.0.1", True)
    pods.label("vllm-2", None)
    pods.label("vllm-2", "vllm")
    pods.terminate("vllm-3")
    pods.remove("vllm-3")
    with open(f"{folder}/watch.jsonl", "wb") as file:
        file.write(watch.read())
    for kind, events in others:
        with open(f"{folder}/{kind}-watch.jsonl", "wb") as file:
            file.write(events.read())
    pods.end("vllm-3")
    pods.add("vllm-3", 3)


class Load:
    """Clients that ask for streams all the time, in a folder of their own."""

    def __init__(self, name, port, models):
        self.folder, self.name = f"load-{name}", name
        os.mkdir(self.folder)
        settings = {"FOREBAY_URL": f"http://127.0.0.1:{port}", "FOREBAY_MODELS": " ".join(models)}
        with open("load.log", "a") as log:
            arguments = [sys.executable, os.path.join(HERE, "../dns/load.py")]
            self.process = subprocess.Popen(arguments, cwd=self.folder, env={**os.environ, **settings}, stdout=log, stderr=log)

    def end(self):
        """Ends it, and holds it to no failed request."""
        open(f"{self.folder}/stop", "w").close()
        self.process.wait(60)
        with open(f"{self.folder}/counts") as file:
            counts = file.read()
        until(f"failed requests through the {self.name}: {counts}", lambda: re.fullmatch("0 of [1-9][0-9]*", counts) is not None, 0)


def loads(processes):
    """Begins to send requests: to the proxy, and to a gateway that asks the picker, if there is an Envoy."""
    all_loads = [Load("proxy", 8080, MODELS)]
    if os.environ.get("ENVOY"):
        processes.append(gateway.start(os.environ["ENVOY"]))

        def answers():
            body = {"model": "by-pool", "max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]}
            url, headers = "http://127.0.0.1:10000/v1/chat/completions", {"content-type": "application/json"}
            request = urllib.request.Request(url, json.dumps(body).encode(), headers)
            return urllib.request.urlopen(request, timeout=5).status == 200

        until("Envoy answers, by the picker", answers)
        all_loads.append(Load("gateway", 10000, ["by-pool"]))
    else:
        print("SKIPPED: the picker, since there is no Envoy", flush=True)
    processes.extend(load.process for load in all_loads)
    return all_loads


def main():
    pods, processes = Pods(), []
    try:
        first = apiserver(FIRST)
        processes.append(first)
        relay = Relay(RELAY, FIRST, TLS)
        for path, body in json.load(open("objects.json")):
            api("POST", path, body)
        account = "/api/v1/namespaces/inference/serviceaccounts/forebay/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        define()
        with open("forebay.token", "w") as file:
            file.write(api("POST", account, request)["status"]["token"])
        with open("forebay.log", "w") as log:
            arguments = [FOREBAY, "serve", "--config", "forebay.toml", "--listen", "127.0.0.1:8080", "--admin", "127.0.0.1:9090"]
            processes.append(subprocess.Popen(arguments, stdout=log, stderr=log))
        until("Forebay is up", lambda: metrics() != "")
        for n in (1, 2, 3):
            pods.add(f"vllm-{n}", n)
        expect("three pods", [1, 2, 3])
        record(pods)
        expect("three pods", [1, 2, 3])
        all_loads = loads(processes)
        scenario(pods)
        inference_pool(pods)
        replicas()
        processes.append(trouble(pods, first))
        expired(pods, relay)
        for load in all_loads:
            load.end()
    finally:
        for name in list(pods.servers):
            pods.end(name)
        for process in processes:
            process.kill()
            process.wait()
    sys.exit(1 if failed else 0)


main()
