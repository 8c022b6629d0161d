"""CPU of a request while the collector of traces accepts connections and never answers, over that with a collector that answers at once.

    python3 tests/traces/cost.py FOREBAY [ROUNDS]      FOREBAY: a release build; ROUNDS: 7

Each round starts a Forebay for each collector, in turns, before one simulated vLLM server, with every request traced. It sends 500 streams to
warm up and 4,000 that count. Prints each round and the ratio of the medians, and ends with 1 if that is above 1.05. Loopback; about a minute.
"""
import http.client, json, os, socket, statistics, subprocess, sys, tempfile, threading, time, urllib.request

FOREBAY, ROUNDS = os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 7
WARM, COUNTED, CLIENTS, LIMIT = 500, 4000, 4, 1.05
BODY = json.dumps({"model": "m", "stream": True, "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]})
TICKS = os.sysconf("SC_CLK_TCK")


class Collector:
    """One that answers, or holds every connection without a word."""

    def __init__(self, answers):
        self.answers, self.held = answers, []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.socket.accept()
            self.held.append(connection)
            if self.answers:
                threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection):
        reader = connection.makefile("rb")
        while reader.readline():
            length = 0
            while (line := reader.readline().strip()):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            reader.read(length)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n")


def port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def await_ok(url):
    end = time.monotonic() + 30
    while True:
        try:
            if urllib.request.urlopen(url, timeout=1).status == 200:
                return
        except OSError:
            pass
        if time.monotonic() > end:
            sys.exit(f"{url} did not come up")
        time.sleep(0.05)


def cpu(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def send(at, count):
    def client():
        connection = http.client.HTTPConnection("127.0.0.1", at, timeout=60)
        for _ in range(count // CLIENTS):
            connection.request("POST", "/v1/chat/completions", BODY, {"content-type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200 or b"[DONE]" not in answer.read():
                failed.append(answer.status)

    failed, threads = [], [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        sys.exit(f"{len(failed)} requests failed: {failed[:3]}")


def cost(collector, backend, folder):
    """Microseconds of CPU that a request takes."""
    data, admin = port(), port()
    config = os.path.join(folder, "forebay.toml")
    with open(config, "w") as file:
        file.write(f'[listen]\naddress = "127.0.0.1:{data}"\n[admin]\naddress = "127.0.0.1:{admin}"\n')
        file.write(f'[trace]\nendpoint = "http://127.0.0.1:{collector.port}"\nsample = 1.0\n')
        file.write(f'[[pools]]\nmodel = "m"\nbackends = [{{ url = "http://127.0.0.1:{backend}" }}]\n')
    with open(os.path.join(folder, "log"), "w") as log:
        process = subprocess.Popen([FOREBAY, "serve", "--config", config], stdout=log, stderr=log)
    try:
        await_ok(f"http://127.0.0.1:{admin}/ready")
        send(data, WARM)
        before = cpu(process.pid)
        send(data, COUNTED)
        return (cpu(process.pid) - before) / COUNTED * 1e6
    finally:
        process.kill()
        process.wait()


def main():
    backend = port()
    arguments = [FOREBAY, "sim", "--host", "127.0.0.1", "--port", str(backend), "--served-model-name", "m", "--time-scale", "100"]
    simulated = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    collectors, costs = {"live": Collector(True), "hung": Collector(False)}, {"live": [], "hung": []}
    try:
        await_ok(f"http://127.0.0.1:{backend}/health")
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(ROUNDS):
                order = ["live", "hung"] if turn % 2 == 0 else ["hung", "live"]
                for name in order:
                    costs[name].append(cost(collectors[name], backend, folder))
                print(f"round {turn + 1}: " + ", ".join(f"{name} {costs[name][-1]:.1f} µs" for name in costs), flush=True)
    finally:
        simulated.kill()
        simulated.wait()
    live, hung = (statistics.median(costs[name]) for name in ("live", "hung"))
    print(f"a request: {hung:.1f} µs with a hung collector, {live:.1f} µs with a live one: {hung / live:.3f}, limit {LIMIT}")
    sys.exit(hung > LIMIT * live)


main()
