"""Discovery against a real API server: what pods may do, under load, and what the server may do. `run.sh` starts it.

There is no kubelet and no controller: this script binds pods, gives them addresses and makes them Ready, and each pod is a simulated vLLM
server on its address. Every check waits for a condition with a limit. Usage: check.py FOREBAY (in the folder with the cluster's files)
"""
import json, os, re, signal, ssl, subprocess, sys, time, urllib.error, urllib.request

FOREBAY = sys.argv[1]
HERE = os.path.dirname(os.path.abspath(__file__))
ADMIN = open("admin.token").read().strip()
TLS = ssl.create_default_context(cafile="pki/apiserver.crt")
PODS = "/api/v1/namespaces/inference/pods"
ROLES = "/apis/rbac.authorization.k8s.io/v1/namespaces/inference"
FIRST, SECOND = 16443, 16444
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

    def add(self, name, host, ready=True):
        address = f"10.244.0.{host}"
        arguments = [FOREBAY, "sim", "--host", address, "--port", "8000", "--served-model-name", "m"]
        self.servers[name] = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def answers():
            return urllib.request.urlopen(f"http://{address}:8000/health", timeout=1).status == 200

        until(f"the server of {name} answers", answers)
        container = {"name": "vllm", "image": "vllm", "ports": [{"name": "http", "containerPort": 8000}]}
        api("POST", PODS, {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "vllm"}},
            "spec": {"nodeName": "gpu-1", "containers": [container], "automountServiceAccountToken": False},
        })
        self.status(name, address, ready)

    def status(self, name, address, ready):
        ready = {"type": "Ready", "status": "True" if ready else "False"}
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [ready]}
        api("PATCH", f"{PODS}/{name}/status", {"status": status}, "application/merge-patch+json")

    def terminate(self, name):
        api("DELETE", f"{PODS}/{name}", {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 30})

    def remove(self, name, port=FIRST):
        api("DELETE", f"{PODS}/{name}", {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}, port=port)

    def end(self, name):
        server = self.servers.pop(name)
        server.kill()
        server.wait()


def metrics():
    return urllib.request.urlopen("http://127.0.0.1:9090/metrics", timeout=5).read().decode()


def serving():
    found = re.findall(r'^forebay_backend_state\{.*backend="10\.244\.0\.(\d+):8000",state="healthy"\} 1', metrics(), re.M)
    return sorted(int(host) for host in found)


def members():
    return len(set(re.findall(r'^forebay_backend_state\{.*backend="([^"]*)"', metrics(), re.M)))


def in_flight(host):
    found = re.findall(rf'^forebay_in_flight\{{.*backend="10\.244\.0\.{host}:8000".*\}} (\d+)', metrics(), re.M)
    return sum(int(count) for count in found)


def errors(reason):
    found = re.search(rf'^forebay_discovery_errors_total\{{.*reason="{reason}"\}} (\d+)', metrics(), re.M)
    return int(found[1]) if found else 0


def expect(what, hosts):
    until(f"{what}: {hosts} serve", lambda: serving() == hosts)


def scenario(pods):
    pods.status("vllm-1", "10.244.0.1", False)
    expect("Ready is false", [2, 3])
    pods.status("vllm-1", "10.244.0.1", True)
    expect("Ready again", [1, 2, 3])
    api("PATCH", f"{PODS}/vllm-1", {"metadata": {"labels": {"app": None}}}, "application/merge-patch+json")
    expect("a label is taken off", [2, 3])
    api("PATCH", f"{PODS}/vllm-1", {"metadata": {"labels": {"app": "vllm"}}}, "application/merge-patch+json")
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


def trouble(pods, first):
    first.send_signal(signal.SIGKILL)
    first.wait()
    until("the API server is killed: errors are counted", lambda: errors("connect") >= 2)
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
    until("403: it is counted", lambda: errors("refused") >= 2, 60)
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

    def said(query):
        url = f"https://127.0.0.1:{FIRST}{PODS}?labelSelector=app%3Dvllm&{query}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {account}", "Accept": "application/json"})
        return urllib.request.urlopen(request, timeout=30, context=TLS)

    listed = said("limit=250").read()
    version = json.loads(listed)["metadata"]["resourceVersion"]
    with open(f"{folder}/list.json", "wb") as file:
        file.write(listed)
    with open(f"{folder}/page.json", "wb") as file:
        file.write(said("limit=2").read())
    watch = said(f"watch=1&allowWatchBookmarks=true&timeoutSeconds=5&resourceVersion={version}")
    pods.status("vllm-1", "10.244.0.1", False)
    pods.status("vllm-1", "10.244.0.1", True)
    api("PATCH", f"{PODS}/vllm-2", {"metadata": {"labels": {"app": None}}}, "application/merge-patch+json")
    api("PATCH", f"{PODS}/vllm-2", {"metadata": {"labels": {"app": "vllm"}}}, "application/merge-patch+json")
    pods.terminate("vllm-3")
    pods.remove("vllm-3")
    with open(f"{folder}/watch.jsonl", "wb") as file:
        file.write(watch.read())
    pods.end("vllm-3")
    pods.add("vllm-3", 3)


def main():
    pods, processes = Pods(), []
    try:
        first = apiserver(FIRST)
        processes.append(first)
        for path, body in json.load(open("objects.json")):
            api("POST", path, body)
        account = "/api/v1/namespaces/inference/serviceaccounts/forebay/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
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
        with open("load.log", "w") as log:
            load = subprocess.Popen([sys.executable, os.path.join(HERE, "../dns/load.py")], stdout=log, stderr=log)
        processes.append(load)
        scenario(pods)
        processes.append(trouble(pods, first))
        open("stop", "w").close()
        load.wait(60)
        counts = open("counts").read()
        until(f"failed requests: {counts}", lambda: re.fullmatch("0 of [1-9][0-9]*", counts) is not None, 0)
    finally:
        for name in list(pods.servers):
            pods.end(name)
        for process in processes:
            process.kill()
            process.wait()
    sys.exit(1 if failed else 0)


main()
