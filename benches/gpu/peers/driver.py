"""The driver of peers.sh, whose head says what it does and what may be set."""

import argparse
import itertools
import json
import math
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import loads
import processes
import rows
import table

BEGIN = time.monotonic()
HERE = Path(__file__).resolve().parent
TIME_IS_OVER = 75
TURN_LIMIT = 75
"""Seconds after which a turn's client is ended, and the turn has no rows."""


class Options:
    """What the environment says."""

    def __init__(self):
        get = os.environ.get
        self.sim = get("SIM", "") not in ("", "0")
        self.base = Path(get("BASE", "/tmp/forebay-peers"))
        self.out = Path(get("OUT") or self.base / "out")
        self.python = get("PYTHON", sys.executable)
        self.vllm = [self.python, "-m", "vllm.entrypoints.cli.main"]
        self.models = Path(get("MODELS", self.base / "models"))
        self.model = get("MODEL", "qwen7b")
        self.forebay = get("FOREBAY", str(HERE.parents[2] / "target/release/forebay"))
        self.forebay_base = get("FOREBAY_BASE", "")
        self.router = get("ROUTER", "")
        self.nginx = get("NGINX", "nginx")
        self.contenders = get("CONTENDERS", "forebay vllm-router:cache_aware nginx:least_conn placed").split()
        self.server_args = shlex.split(get("SERVER_ARGS", ""))
        self.gpus = int(get("GPUS", "1"))
        self.port = int(get("PORT", "8130"))
        self.rate = {word.rpartition("=")[0]: word.rpartition("=")[2] for word in get("RATE", "").split(",") if word}
        self.seconds = float(get("SPAN") or (5 if self.sim else 0))
        self.scale = float(get("SCALE") or (0.2 if self.sim else 1))
        self.limit = float(get("LIMIT") or math.inf)
        self.start_limit = 300
        self.all_servers = get("ALL_SERVERS", "") not in ("", "0")
        self.restart = get("RESTART", "") not in ("", "0")
        self.keep = get("KEEP", "0" if self.sim else "1") not in ("", "0")
        self.decisions = get("DECISIONS", "") not in ("", "0")
        self.client = get("CLIENT", "forebay" if self.sim else "vllm")
        self.base.mkdir(parents=True, exist_ok=True)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.base / "logs").mkdir(exist_ok=True)

    def left(self):
        return self.limit - (time.monotonic() - BEGIN)


def say(text):
    print(f"[{time.monotonic() - BEGIN:4.0f} s] {text}", flush=True)


class Client:
    """Runs of the load generator. `prepare` may come long before `go`."""

    def __init__(self, options):
        self.options = options
        self.runs, self.events = {}, {}
        self.changed = threading.Condition()
        self.process = None
        if options.client == "vllm":
            self.process = subprocess.Popen([options.python, str(HERE / "client.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                            env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"}, start_new_session=True,
                                            stderr=open(options.base / "logs" / "client.log", "ab"))
            threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            event = json.loads(line)
            with self.changed:
                self.events.setdefault(event.pop("name"), {}).update(event)
                self.changed.notify_all()
        with self.changed:
            self.events["client"] = {"ended": True}
            self.changed.notify_all()

    def arguments(self, port, trace, file):
        common = ["--model", self.options.model, "--dataset-name", "timed_trace", "--dataset-path", str(trace), "--timed-trace-chunk-hash-size",
                  str(loads.CHUNK), "--num-prompts", "100000"]
        url = f"http://127.0.0.1:{port}"
        if self.options.client == "forebay":
            return [self.options.forebay, "bench", url, *common, "--endpoint", "completions", "--ignore-eos", "--temperature", "0", "--no-scrape", "--output", str(file)]
        return ["--backend", "openai", "--base-url", url, "--endpoint", "/v1/completions", "--tokenizer", str(self.options.models / self.options.model),
                *common, "--temperature", "0", "--ready-check-timeout-sec", "600", "--disable-tqdm", "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,90,99",
                "--goodput", "ttft:500", "tpot:50", "--save-result", "--save-detailed", "--result-dir", str(file.parent), "--result-filename", file.name]

    def prepare(self, name, port, trace, file):
        go, log = file.with_suffix(".go"), file.with_suffix(".client.log")
        for old in (go, file):
            old.unlink(missing_ok=True)
        self.runs[name] = {"arguments": self.arguments(port, trace, file), "log": str(log), "go": str(go)}
        if self.process:
            self.process.stdin.write(json.dumps({"name": name} | self.runs[name]) + "\n")
            self.process.stdin.flush()

    def wait(self, names, what, seconds):
        """Whether all of them have come so far; not if one ended before."""
        if not self.process and what == "ready":
            return True
        end = time.monotonic() + seconds
        with self.changed:
            while True:
                seen = [self.events.get(name, {}) for name in names]
                if all(what in one for one in seen):
                    return what == "ready" or all(one["ended"] == 0 for one in seen)
                over = time.monotonic() >= end or "ended" in self.events.get("client", {})
                if over or (what == "ready" and any("ended" in one for one in seen)):
                    return False
                self.changed.wait(0.2)

    def go(self, names):
        for name in names:
            run = self.runs[name]
            if self.process:
                Path(run["go"]).touch()
                continue
            with open(run["log"], "wb") as log:
                process = subprocess.Popen(run["arguments"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            threading.Thread(target=self.reap, args=(name, process), daemon=True).start()

    def reap(self, name, process):
        code = process.wait()
        with self.changed:
            self.events.setdefault(name, {})["ended"] = code
            self.changed.notify_all()

    def end(self):
        if self.process:
            processes.end_group(self.process.pid, 2)


class Turn:
    """One contender, one load, once."""

    def __init__(self, driver, scenario, contender, start, block, epoch, rate):
        self.driver, self.scenario, self.contender = driver, scenario, contender
        self.start, self.block, self.epoch, self.rate = start, block, epoch, rate
        self.name = f"{scenario}-{contender.name.replace(':', '-')}-{epoch}"
        self.ports = driver.ports(scenario)
        self.parts = []

    def prepare(self):
        options, number = self.driver.options, list(loads.SCENARIOS).index(self.scenario)
        self.seconds = options.seconds or loads.SCENARIOS[self.scenario].seconds
        requests, self.begin = loads.turn(self.scenario, number * 10_000 + self.epoch, self.block, self.rate, self.seconds, options.scale)
        if self.contender.name == "probe":
            requests = [one | {"timestamp": min(one["timestamp"], self.begin + (one["timestamp"] - self.begin) * 3 / self.seconds)} for one in requests]
        homes = (0, 1) if self.contender.direct else (None,)
        for home in homes:
            mine = [one for one in requests if home is None or one["home"] == home]
            at = options.base / "logs" / f"{self.name}{'' if home is None else f'-{home}'}"
            trace, file = at.with_suffix(".trace"), at.with_suffix(".json")
            trace.write_text("".join(json.dumps({key: value for key, value in one.items() if key != "home"}) + "\n" for one in mine))
            primers = sum(one["timestamp"] < self.begin for one in mine)
            port = options.port + 70 if home is None else self.ports[home]
            self.parts.append({"name": at.name, "file": file, "primers": primers, "planned": [one["timestamp"] for one in mine[primers:]],
                               "backend": None if home is None else f"127.0.0.1:{port}"})
            self.driver.client.prepare(at.name, port, trace, file)
        self.asked = [one for one in requests if one["timestamp"] >= self.begin]

    def looks(self):
        return [rows.sample(port) for port in self.ports]

    def run(self):
        """Whether it has rows now."""
        options, client, names = self.driver.options, self.driver.client, [part["name"] for part in self.parts]
        folder = options.base / "logs" / self.name
        if not client.wait(names, "ready", 120):
            return self.failed("the client did not get ready: " + self.last_words())
        if not self.driver.idle(self.ports):
            return self.failed("the servers are not idle")
        if not self.contender.start(self.ports, folder):
            self.contender.stop(folder / "metrics")
            return self.failed("the contender did not serve: " + (folder / "log").read_text(errors="replace")[-500:])
        pid = self.contender.process.pid if self.contender.process else None
        since = time.monotonic()
        client.go(names)
        time.sleep(max(0.0, self.begin - 0.5 - (time.monotonic() - since)))
        before, cpu = self.looks(), processes.used(pid) if pid else None
        done = client.wait(names, "ended", TURN_LIMIT)
        used = [now - then for now, then in zip(processes.used(pid), cpu)] if pid else None
        after = self.looks()
        self.contender.stop(folder / "metrics" if folder.exists() else options.base / "logs" / "metrics")
        if not done:
            return self.failed("the client failed or took too long: " + self.last_words())
        self.write(before, after, used)
        return True

    def last_words(self):
        log = Path(self.driver.client.runs[self.parts[0]["name"]]["log"])
        return log.read_text(errors="replace")[-500:] if log.exists() else ""

    def failed(self, why):
        say(f"{self.name}: NO ROWS: {why}")
        return False

    def write(self, before, after, used):
        options, read = self.driver.options, rows.of_vllm if self.driver.client.process else rows.of_forebay
        records, late = [], []
        for part in self.parts:
            mine = read(part["file"], part["primers"], part["backend"])
            late += rows.lateness(mine, part["planned"])
            records += mine
            part["file"].unlink()
        lengths = {key: {one[key] for one in self.asked} for key in ("input_length", "output_length")}
        load = {
            "offered": {"rate": float(self.rate)} if self.rate else "unlimited",
            "num_prompts": len(self.asked), "dataset": self.scenario,
            "input_len": lengths["input_length"].pop() if len(lengths["input_length"]) == 1 else None,
            "output_len": lengths["output_length"].pop() if len(lengths["output_length"]) == 1 else None,
            "seed": self.block,
        }
        head = {
            "arm": self.contender.name, "epoch": self.epoch, "block": self.block, "start": self.start, "load": load, "model": options.model,
            "gpus": options.gpus, "replicas": 2, "simulated": options.sim, "client": "vllm bench serve" if self.driver.client.process else "forebay bench",
            "servers": [f"127.0.0.1:{port}" for port in self.ports],
        }
        end = {"lag_p99_us": sorted(late)[int(0.99 * (len(late) - 1))], "proxy_cpu_us": None}
        if used:
            end |= {"proxy_cpu_us": rows.micros(used[0] + used[1]), "proxy_kernel_us": rows.micros(used[1]), "proxy_switches": used[2]}
        file = options.out / ("probe.jsonl" if self.contender.name == "probe" else f"{self.scenario}.jsonl")
        rows.write(file, head, records, (before, after), end)
        say(f"{self.name}: {table.words(rows.read(file)[-1])}")


class Driver:
    def __init__(self, options):
        self.options = options
        self.servers = processes.Servers(options, say)
        self.client = Client(options)

    def ports(self, scenario):
        return [self.servers.ports["first"], self.servers.ports[loads.SCENARIOS[scenario].second]]

    def idle(self, ports):
        """Waits until nothing runs there."""
        for _ in range(150):
            looks = [rows.sample(port) for port in ports]
            if all(look and not look["running"] and not look["waiting"] for look in looks):
                return True
            time.sleep(0.2)
        return False

    def warm_up(self, kinds):
        """Compiles what the first requests would: some prompts of a few lengths to each server, which no row has."""
        if not kinds or self.options.sim:
            return
        at = self.options.base / "logs"
        names = []
        for n, kind in enumerate(kinds):
            made = loads.Turn(9_000_000 + 1000 * n + int(time.time()) % 1000)
            sizes = [100, 512, 1500, 4000] * 10 + [100] * 40
            requests = [made.request(i / 20, 0, made.text(size), size, 64) for i, size in enumerate(sizes)]
            trace = at / f"warm-{kind}.trace"
            trace.write_text("".join(json.dumps({key: value for key, value in one.items() if key != "home"}) + "\n" for one in requests))
            name = f"warm-{kind}"
            self.client.events.pop(name, None)
            self.client.prepare(name, self.servers.ports[kind], trace, at / f"{name}.json")
            names.append(name)
        if not self.client.wait(names, "ready", 120):
            raise SystemExit("the client did not get ready: see " + str(at / "client.log"))
        self.client.go(names)
        if not self.client.wait(names, "ended", 120):
            raise SystemExit("the warm-up failed: see " + self.client.runs[names[0]]["log"])
        say("warm")

    def done(self, scenario):
        file = self.options.out / f"{scenario}.jsonl"
        return rows.read(file) if file.exists() else []

    def rate(self, scenario, start):
        """The rate that is set, or a share of what a probe of perfect placement carried, which is noted for later calls."""
        said = self.options.rate.get(scenario) or self.options.rate.get("")
        rate = said or loads.SCENARIOS[scenario].rate
        if not str(rate or "").endswith("%"):
            return rate and float(rate) * (1 if said else self.options.gpus)
        note = self.options.out / f"rate-{scenario}.json"
        if not note.exists():
            turn = Turn(self, scenario, processes.Contender("probe", self.options), start, 0, 9_000, loads.SCENARIOS[scenario].rate * self.options.gpus)
            turn.prepare()
            if not turn.run():
                raise SystemExit("the probe failed")
            probe = rows.read(self.options.out / "probe.jsonl")[-1]
            carried = len(probe["records"]) / max(one["sent_us"] + one["end_us"] for one in probe["records"]) * 1e6
            note.write_text(json.dumps({"carried": carried, "rate": round(carried * float(rate[:-1]) / 100, 1)}))
            say(f"perfect placement carried {carried:.1f} requests/s")
        return json.loads(note.read_text())["rate"]

    def turns(self, scenarios, rounds, start, contenders):
        """What is left to do, round by round: each scenario's contenders in turn, every other round in the reverse order."""
        blocks, epochs, had = {}, {}, {}
        for scenario in scenarios:
            have = self.done(scenario)
            here = [turn["head"] for turn in have if turn["head"]["start"] == start]
            later = itertools.count(1 + max((turn["head"]["block"] for turn in have), default=-1))
            begun = sorted({head["block"] for head in here})
            blocks[scenario] = [begun[n] if n < len(begun) else next(later) for n in range(rounds)]
            epochs[scenario] = itertools.count(1 + max((turn["head"]["epoch"] for turn in have), default=-1))
            had[scenario] = {(head["block"], head["arm"]) for head in here}
        for round_ in range(rounds):
            for scenario in scenarios:
                block = blocks[scenario][round_]
                for contender in contenders if round_ % 2 == 0 else contenders[::-1]:
                    if (block, contender.name) not in had[scenario]:
                        yield scenario, contender, block, next(epochs[scenario])

    def measure(self, scenarios, rounds, start, contenders):
        """Runs the turns, each prepared while the one before it runs. Returns whether all were run."""
        rates = {scenario: self.rate(scenario, start) for scenario in scenarios}
        left, ahead, missing = self.turns(scenarios, rounds, start, contenders), None, 0
        while True:
            ready = ahead
            upcoming = next(left, None)
            ahead = None
            if upcoming:
                scenario, contender, block, epoch = upcoming
                ahead = Turn(self, scenario, processes.Contender(contender.name, self.options), start, block, epoch, rates[scenario])
                ahead.prepare()
            if ready is None and ahead is None:
                return missing
            if ready is not None:
                if self.options.left() < 60:
                    say(f"no time for {ready.name}")
                    raise SystemExit(TIME_IS_OVER)
                missing += not ready.run()


def machine(options):
    """Says once what was measured on, and with what."""
    said = []
    for command in (["nvidia-smi", "-L"], ["nvidia-smi", "--query-gpu=index,name,driver_version,memory.total,clocks.max.sm,power.limit", "--format=csv"],
                    [options.python, "-c", "import importlib.metadata as m; print([(n, m.version(n)) for n in ('vllm', 'torch', 'transformers')])"],
                    [options.forebay, "--version"], [options.nginx, "-v"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            said.append(f"$ {' '.join(command)}\n{(done.stdout + done.stderr).strip()[-2000:]}\n")
        except (OSError, subprocess.TimeoutExpired) as error:
            said.append(f"$ {' '.join(command)}\n{error}\n")
    said.append(f"{platform.platform()}, {os.cpu_count()} CPUs, {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}\n")
    (options.out / "machine.txt").write_text("".join(said))


def pack(options):
    """Brings together what explains the rows: logs without traces, as one file."""
    subprocess.run(["tar", "-czf", str(options.out / "logs.tar.gz"), "--exclude=*.trace", "--exclude=*.json", "-C", str(options.base), "logs", "servers"],
                   capture_output=True, check=False)


def main():
    parser = argparse.ArgumentParser(prog="peers.sh", description="The head of peers.sh says what may be set.")
    parser.add_argument("scenarios", help=f"one or more of {','.join(loads.SCENARIOS)}, with commas between")
    parser.add_argument("turns", nargs="?", type=int, default=2, help="turns of each contender in this start of the servers")
    arguments = parser.parse_args()
    scenarios = arguments.scenarios.split(",")
    for scenario in scenarios:
        if scenario not in loads.SCENARIOS:
            parser.error(f"there is no scenario {scenario}")
    options = Options()
    driver = Driver(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    code = 0
    try:
        contenders = [processes.Contender(name, options) for name in options.contenders]
        for contender in contenders:
            if contender.why_not:
                say(f"{contender.name}: SKIPPED: {contender.why_not}")
        contenders = [contender for contender in contenders if not contender.why_not]
        if not contenders:
            raise SystemExit("no contender is installed")
        if options.restart:
            driver.servers.stop()
        start = driver.servers.start_number([turn for scenario in loads.SCENARIOS for turn in driver.done(scenario)])
        kinds = list(processes.Servers.KINDS)
        if not options.all_servers:
            kinds = [kind for kind in kinds if kind == "first" or kind in {loads.SCENARIOS[scenario].second for scenario in scenarios}]
        started = driver.servers.ensure(kinds, start)
        say(f"start {start} of the servers")
        if not (options.out / "machine.txt").exists():
            machine(options)
        driver.warm_up(started)
        missing = driver.measure(scenarios, arguments.turns, start, contenders)
        say(f"{missing} turns without rows" if missing else "all turns have rows")
        code = 1 if missing else 0
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            say(code)
            code = 1
    finally:
        driver.client.end()
        if not options.keep:
            driver.servers.stop()
        pack(options)
    return code


if __name__ == "__main__":
    if not shutil.which("tar"):
        sys.exit("tar is not installed")
    sys.exit(main())
