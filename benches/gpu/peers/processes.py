"""The processes of peers.sh: servers, which outlive a call, and contenders, which live for a turn."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
TICKS = os.sysconf("SC_CLK_TCK")


def answers(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def wait_for(port, path, pid, seconds):
    """Whether the port answers in time; not if the process has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answers(port, path):
            return True
        if not alive(pid):
            return False
        time.sleep(0.1)
    return False


def begun(pid):
    """When a process that lives was started, in ticks; none where there is none. With it a pid is not taken for a later process's."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def alive(pid):
    return begun(pid) is not None


def used(pid):
    """CPU seconds in user mode and in the kernel of a process and all below it, and how often their threads were switched."""
    parents, spent = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            spent[int(entry.name)] = (int(fields[11]) / TICKS, int(fields[12]) / TICKS)
    user = system = switches = 0
    for one, seconds in spent.items():
        above = one
        while above not in (pid, 0):
            above = parents.get(above, 0)
        if above == pid:
            user, system = user + seconds[0], system + seconds[1]
            for status in Path(f"/proc/{one}/task").glob("*/status"):
                try:
                    switches += sum(map(int, re.findall(r"ctxt_switches:\s*(\d+)", status.read_text())))
                except OSError:
                    continue
    return user, system, switches


def end_group(pid, patience):
    """Ends a process group: asks, and after so many seconds no longer asks."""
    for how, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5)):
        try:
            os.killpg(pid, how)
        except OSError:
            return
        end = time.monotonic() + seconds
        while time.monotonic() < end and alive(pid):
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass
            time.sleep(0.05)


class Servers:
    """The servers of all scenarios. Each is noted in a file, so that a later call finds it. An idle one takes memory and nothing else."""

    KINDS = {"first": [], "equal": [], "capped": ["--max-num-seqs", "32"], "half": []}
    KV = {"first": "10G", "equal": "10G", "capped": "10G", "half": "5G"}
    SIMULATED_KV = {"10G": "187232", "5G": "93616"}

    def __init__(self, options, say):
        self.options, self.say = options, say
        self.ports = {kind: options.port + n for n, kind in enumerate(self.KINDS)}
        self.folder = options.base / "servers"
        self.folder.mkdir(parents=True, exist_ok=True)

    def note(self, kind):
        return self.folder / f"{kind}.json"

    def noted(self, kind):
        """The note on a server whose process lives."""
        if not self.note(kind).exists():
            return None
        noted = json.loads(self.note(kind).read_text())
        return noted if begun(noted["pid"]) == noted["begun"] else None

    def up(self, kind):
        return self.noted(kind) is not None and answers(self.ports[kind], "/health")

    def start_number(self, rows):
        """Which start of the servers this is: by all that is up, or one after those with rows."""
        started = [self.noted(kind)["start"] for kind in self.KINDS if self.up(kind)]
        return started[0] if started else 1 + max((turn["head"]["start"] for turn in rows), default=-1)

    def command(self, kind):
        port = str(self.ports[kind])
        if self.options.sim:
            return [self.options.forebay, "sim", "--profile", "h200-tp1-qwen7b", "--port", port, "--served-model-name", self.options.model,
                    "--kv-tokens", self.SIMULATED_KV[self.KV[kind]], *self.KINDS[kind]]
        return [*self.options.vllm, "serve", str(self.options.models / self.options.model), "--served-model-name", self.options.model,
                "--load-format", "dummy", "--host", "127.0.0.1", "--port", port, "--seed", "0", "--disable-uvicorn-access-log",
                "--max-model-len", "10240", "--gpu-memory-utilization", "0.2", "--kv-cache-memory-bytes", self.KV[kind],
                *self.KINDS[kind], *self.options.server_args]

    def start(self, kind, start):
        gpu = "1" if self.options.gpus == 2 and kind != "first" else "0"
        cache = self.options.base / "cache" / f"gpu{gpu}"
        environment = os.environ | {
            "CUDA_VISIBLE_DEVICES": gpu, "VLLM_CACHE_ROOT": f"{cache}/vllm", "TRITON_CACHE_DIR": f"{cache}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "XDG_CACHE_HOME": f"{cache}/xdg",
        }
        with open(self.folder / f"{kind}.log", "ab") as log:
            process = subprocess.Popen(self.command(kind), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True)
        self.note(kind).write_text(json.dumps({"pid": process.pid, "begun": begun(process.pid), "start": start}))
        return process.pid

    def ensure(self, kinds, start):
        """Starts what is not up. The first one goes ahead alone where nothing is compiled yet: the others find what it compiled."""
        missing = [kind for kind in kinds if not self.up(kind)]
        compiled = self.options.base / "cache" / "compiled"
        groups = [missing] if self.options.sim or compiled.exists() else [missing[:1], missing[1:]]
        for group in groups:
            pids = {kind: self.start(kind, start) for kind in group}
            for kind, pid in pids.items():
                if not wait_for(self.ports[kind], "/health", pid, self.options.start_limit):
                    log = (self.folder / f"{kind}.log").read_text(errors="replace").splitlines()
                    raise SystemExit("\n".join([f"the server {kind} did not start:", *log[-25:]]))
            if group:
                self.say(f"up: {', '.join(group)}")
        if missing and not self.options.sim:
            compiled.parent.mkdir(parents=True, exist_ok=True)
            compiled.touch()
        return missing

    def stop(self):
        for kind in self.KINDS:
            noted = self.noted(kind)
            if noted:
                end_group(noted["pid"], 10)
            self.note(kind).unlink(missing_ok=True)


class Contender:
    """A proxy before two servers, or none."""

    def __init__(self, name, options):
        self.name, self.options, self.process, self.why_not = name, options, None, None
        kind, _, self.policy = name.partition(":")
        self.direct = kind in ("placed", "probe")
        if kind in ("forebay", "forebay@base"):
            self.program = options.forebay if kind == "forebay" else options.forebay_base
            self.why_not = None if self.program and shutil.which(self.program) else f"{self.program} is no program"
        elif kind == "nginx":
            self.why_not = None if shutil.which(options.nginx) else "nginx is not installed"
        elif kind == "vllm-router":
            found = subprocess.run([options.python, "-c", "import vllm_router_rs"], env=self.router_environment(), capture_output=True, check=False)
            self.why_not = found.stderr.decode().strip().splitlines()[-1] if found.returncode else None
        elif not self.direct:
            self.why_not = "there is no such contender"

    def router_environment(self):
        path = os.pathsep.join(filter(None, [self.options.router, os.environ.get("PYTHONPATH")]))
        return os.environ | {"PYTHONPATH": path}

    def command(self, ports, folder):
        listen, admin = self.options.port + 70, self.options.port + 71
        servers = [f"http://127.0.0.1:{port}" for port in ports]
        if self.name.startswith("forebay"):
            more = ["--threads", self.policy.removeprefix("threads=")] if self.policy else []
            more += ["--access-log", "json", "--log-level", "warn,forebay=debug"] if self.options.decisions else []
            return [self.program, "serve", "--listen", f"127.0.0.1:{listen}", "--admin", f"127.0.0.1:{admin}", *more,
                    *(word for server in servers for word in ("--backend", server))]
        if self.name.startswith("vllm-router"):
            return [self.options.python, str(HERE / "vllm_router_main.py"), "--host", "127.0.0.1", "--port", str(listen), "--policy", self.policy,
                    "--worker-urls", *servers, "--worker-startup-check-interval", "1", "--log-level", "warning",
                    "--prometheus-host", "127.0.0.1", "--prometheus-port", str(admin)]
        text = (HERE / "nginx.conf").read_text()
        policy = "hash $beginning" if self.policy == "hash" else self.policy
        for key, value in {"DIR": folder, "POLICY": policy, "PORT": listen, "FIRST": ports[0], "SECOND": ports[1]}.items():
            text = text.replace(f"@{key}@", str(value))
        (folder / "nginx.conf").write_text(text)
        return [self.options.nginx, "-p", str(folder), "-c", str(folder / "nginx.conf")]

    def start(self, ports, folder):
        """Whether it serves the model."""
        if self.direct:
            return True
        folder.mkdir(parents=True, exist_ok=True)
        environment = self.router_environment() if self.name.startswith("vllm-router") else os.environ
        with open(folder / "log", "wb") as log:
            self.process = subprocess.Popen(self.command(ports, folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                                            start_new_session=True)
        return wait_for(self.options.port + 70, "/v1/models", self.process.pid, 30)

    def stop(self, keep):
        if not self.process:
            return
        if self.name.startswith("forebay"):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.options.port + 71}/metrics", timeout=5) as answer:
                    keep.write_bytes(answer.read())
            except OSError:
                pass
        end_group(self.process.pid, 3)
        self.process = None
