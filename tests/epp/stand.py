"""Under the scripts of this folder: a real Envoy by the configuration that is shipped, pickers, proxies and simulated servers before
it and behind it. Each has ports of its own and ends with the stand, by its pid. Standard library only."""

import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
SHIPPED = HERE.parent.parent / "config" / "gateway" / "envoy.yaml"
sys.path.insert(0, str(HERE.parent / "real_vllm"))
from wire import samples, total  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
ENDPOINT = "        - endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: {} }} }} }}"
# The response's mode as it is shipped, and the one in which Envoy gives the pieces away.
KEPT = "response_body_mode: STREAMED\n                response_trailer_mode: SKIP"
GIVEN = "response_body_mode: FULL_DUPLEX_STREAMED\n                response_trailer_mode: SEND"


def envoy_program():
    """The program: ENVOY_BIN, or in the virtual environment that it names, or where .ci/run puts it. None where there is none."""
    named = pathlib.Path(os.environ.get("ENVOY_BIN") or pathlib.Path.home() / ".cache/forebay/tools/envoy")
    if named.is_file():
        return named
    return next(named.glob("lib/*/site-packages/envoy/_bin/envoy"), None)


def skip(why):
    print(f"SKIPPED: {why}")
    sys.exit(77)


def free_port():
    """A free port below those that Linux gives to connections, one of which could take it before its server does."""
    while True:
        port = random.randrange(10_000, 32_000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port


def read(url, timeout=5):
    """The text of a GET; None where there is no good answer."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.read().decode()
    except OSError:
        return None


def until(what, probe, limit=30, every=0.02):
    """Waits for `probe` to return something that is true, and returns it."""
    end = time.monotonic() + limit
    while not (found := probe()):
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {limit} s")
        time.sleep(every)
    return found


def cpu(*processes):
    """Seconds of CPU that these have taken."""
    seconds = 0
    for process in processes:
        with open(f"/proc/{process.pid}/stat") as file:
            fields = file.read().rsplit(") ", 1)[1].split()
        seconds += (int(fields[11]) + int(fields[12])) / TICKS
    return seconds


class Served:
    """A process that serves: its ports and its figures."""

    def __init__(self, process, port, admin=None):
        self.process, self.port, self.admin = process, port, admin
        self.url = f"http://127.0.0.1:{port}"

    def metric(self, name, **labels):
        return total(read(f"http://127.0.0.1:{self.admin or self.port}/metrics") or "", name, **labels)

    def series(self, name):
        """How many series a metric has."""
        return len(samples(read(f"http://127.0.0.1:{self.admin}/metrics") or "", name))

    def picked(self):
        """Requests of clients that a picker has placed, and has seen succeed as far as it looked."""
        return sum(self.metric("forebay_requests_total", api=api, outcome="success") for api in ("chat", "completions"))

    def end(self, how=signal.SIGTERM, limit=30):
        """Its exit status. What does not end in time is killed, which is a failure."""
        self.process.send_signal(how)
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"pid {self.process.pid} did not end within {limit} s") from None


class Stand:
    """What runs, with a folder for configurations and logs. A context manager."""

    def __init__(self, forebay):
        self.forebay, self.running = os.path.abspath(forebay), []
        self.folder = pathlib.Path(tempfile.mkdtemp())
        # Its processes end with it then, too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        for process in self.running:
            process.kill()
        for process in self.running:
            process.wait()
        if kind not in (None, SystemExit):
            for log in sorted(self.folder.glob("*.log")):
                end = log.read_text(errors="replace").splitlines()[-5:]
                print("\n".join([f"---- the end of {log.name}:", *end]), file=sys.stderr)
        shutil.rmtree(self.folder)

    def start(self, name, *command, cores=None):
        """Starts a program; `cores`: the ones that it may use."""
        pinned = (lambda: os.sched_setaffinity(0, cores)) if cores else None
        with (self.folder / f"{name}-{len(self.running)}.log").open("w") as log:
            process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=pinned
            )
        self.running.append(process)
        return process

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return path

    def simulated(self, *options, host="127.0.0.1", cores=None):
        """A simulated server of the model `m`."""
        port = free_port()
        command = [self.forebay, "sim", "--host", host, "--port", port, "--served-model-name", "m", *options]
        served = Served(self.start("sim", *command, cores=cores), port)
        until("a simulated server", lambda: read(f"{served.url}/health") is not None)
        return served

    @staticmethod
    def pool(model, addresses):
        """A pool, whose salt is the same in all pickers."""
        listed = ", ".join(f'{{ url = "http://{address}" }}' for address in addresses)
        return f'[[pools]]\nmodel = "{model}"\nsplit_salt = "stand"\nbackends = [{listed}]\n'

    def picker(self, pools, keys="", more="", cores=None):
        """A picker alone. `keys`: of `[epp]`; `more`: sections before the pools."""
        port, admin = free_port(), free_port()
        text = f'[admin]\naddress = "127.0.0.1:{admin}"\n{more}\n[epp]\naddress = "127.0.0.1:{port}"\n{keys}\n{pools}'
        config = self.write(f"picker-{port}.toml", text)
        served = Served(self.start("picker", self.forebay, "epp", "--config", config, cores=cores), port, admin)
        until("a picker", lambda: read(f"http://127.0.0.1:{admin}/ready") is not None)
        return served

    def proxy(self, pools, more=""):
        """A Forebay that is a proxy."""
        port, admin = free_port(), free_port()
        text = f'[admin]\naddress = "127.0.0.1:{admin}"\n[listen]\naddress = "127.0.0.1:{port}"\n{more}\n{pools}'
        config = self.write(f"proxy-{port}.toml", text)
        served = Served(self.start("proxy", self.forebay, "serve", "--config", config, "--access-log", "off"), port, admin)
        until("a proxy", lambda: read(f"http://127.0.0.1:{admin}/ready") is not None)
        return served

    def envoy(self, pickers, addresses, change=(), in_order=False):
        """Envoy by the shipped file. No picker: without the filter, so that it takes turns. `change`: texts to put in place of others.
        `in_order`: a picker is asked only where those before it are gone."""
        port, admin = free_port(), free_port()
        text = SHIPPED.read_text()
        if not pickers:
            text, cuts = re.subn(r" +- name: envoy\.filters\.http\.ext_proc\n.*?(?= +- name: envoy\.filters\.http\.router)", "", text, flags=re.S)
            assert cuts == 1, "the shipped configuration has one filter"
        for old, new in change:
            assert old in text, f"the shipped configuration has no {old!r}"
            text = text.replace(old, new)
        lines, placed = [], False
        for line in text.splitlines():
            if "port_value: 8001" in line or "port_value: 8002" in line:
                if not placed:
                    lines += [ENDPOINT.format(*address.rsplit(":", 1)) for address in addresses]
                placed = True
            elif "port_value: 9002" in line:
                each = [ENDPOINT.format("127.0.0.1", picker.port) for picker in pickers] or [line]
                for priority, one in enumerate(each):
                    if in_order and priority:
                        lines.append(f"      - priority: {priority}\n        lb_endpoints:")
                    lines.append(one)
            else:
                lines.append(line.replace("port_value: 10000", f"port_value: {port}"))
        head = f"admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}\n"
        config = self.write(f"envoy-{port}.yaml", head + "\n".join(lines) + "\n")
        command = [envoy_program(), "-c", config, "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"]
        served = Served(self.start("envoy", *command), port, admin)

        def up():
            clusters = read(f"http://127.0.0.1:{admin}/clusters") or ""
            flags = [line for line in clusters.splitlines() if line.startswith("picker::") and "health_flags" in line]
            return clusters and len(flags) >= len(pickers) and all(line.endswith("::healthy") for line in flags if pickers)

        until("Envoy and its pickers", up)
        return served
