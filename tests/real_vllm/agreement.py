"""`forebay bench` beside `vllm bench serve`: the same server, the same load, one after the other, in turns.

    VENV/bin/python tests/real_vllm/agreement.py VENV FOREBAY [--pairs 5] [--burstiness inf]
                                               [--only simulated|real | --at-once]

Starts the servers itself, on loopback: `forebay sim` with prompts that take 200 ms, then a real vLLM with the tiny model at 20
requests a second. Servers get all cores but the last, the two tools the last, and where times are judged they go before other
work of the machine, if the system allows that. Pairs go A B, B A, A B: what drifts meets both. On a machine whose neighbours
change its speed from one run to the next, --at-once lets both send to the real one at the same time, at half the rate each: what
one meets, the other does too.

Prompts are random ones of an exact length by each tool's own making, so the prefix cache is off: the tools repeat themselves
differently. Each run has the next seed. The simulated tokenizer counts short words, so `vllm bench serve` gets a tokenizer
whose every token is one.

Printed for each figure: the runs of both, in order; the middle of the pairs' ratios forebay/vllm and their spread; the verdict.
Agreement: throughput and the medians of TPOT and E2E within 2 %, that of TTFT within 2 % + 2 ms, by the middle pair; a P99
within the same, or no difference that its own scatter does not explain (the 95 % t-interval of the log ratio holds 1). Means
and ITL are shown only. Requests and generated tokens must be equal, input tokens within 2 %: with the tiny model's tokenizer
neither tool meets every length.

At a rate the duration of `vllm bench serve` begins a gap before its first request and ours with it: of n requests its
throughput is up to 1/n lower.

FOREBAY_SIZE=ci (default): one short pair, of which only the counts are judged: times on a busy machine mean nothing.
FOREBAY_SIZE=full, or --pairs: all. A figure is `open` where runs of one tool differ too much to tell. The last line is
`N passed, N failed`; exit 1 on a failure.
"""

import argparse
import contextlib
import functools
import itertools
import json
import math
import os
import pathlib
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

# Two-sided 95 % quantiles of Student's t, by degrees of freedom.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
SHARE, TTFT_MS = 0.02, 2.0
WORDS = ["".join(letters) for letters in itertools.product("bdfgklmnprst", "aeiou", "bdgklmnprst", "ao", "n")]
CORES = sorted(os.sched_getaffinity(0))
SERVER, CLIENT = (CORES[:-1], CORES[-1:]) if len(CORES) > 1 else (CORES, CORES)

LOADS = {
    # 2000 prompt tokens take 204 ms on the simulated GPU; three of four parts of its time are used.
    "simulated": {"rate": 3, "input": 2000, "output": 32, "prompts": 120, "few": 8},
    "real": {"rate": 20, "input": 32, "output": 64, "prompts": 300, "few": 40},
}


def figures():
    """Name, key of `vllm bench serve`, path in a part of `forebay bench`, rule, digits."""
    yield "requests/s", "request_throughput", None, "2 %", 3
    yield "output tokens/s", "output_throughput", "output_tokens_per_second", "2 %", 2
    for name, key, part, rule in (("TTFT", "ttft", "ttft_ms", "2 % + 2 ms"), ("TPOT", "tpot", "tpot_ms", "2 %"),
                                  ("ITL", "itl", "itl_ms", None), ("E2E", "e2el", "e2e_ms", "2 %")):
        for word, theirs, ours in (("mean", "mean", "mean"), ("median", "median", "p50"), ("P99", "p99", "p99")):
            judged = rule if word == "median" else "noise" if word == "P99" and rule else None
            yield f"{word} {name} ms", f"{theirs}_{key}_ms", f"{part}.{ours}", judged, 3


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def on(cores, first=False):
    """For a new process: its cores, and with `first` all other work on them waits for it, where the system allows that."""

    def begin():
        os.sched_setaffinity(0, cores)
        if first:
            with contextlib.suppress(PermissionError):
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))

    return begin


def weigh(pid):
    """Gives a server's session more of its core than other sessions get, where the system allows that. Not all of it: the
    processes of a vLLM have to take turns with each other."""
    with contextlib.suppress(OSError):
        pathlib.Path(f"/proc/{pid}/autogroup").write_text("-18")


def wait_for(url, process, seconds):
    deadline = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(url, timeout=2).close()
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"agreement.py: no answer from {url}: {error}") from error
        time.sleep(0.05)


class Simulated:
    def __init__(self, args, tmp):
        port = free_port()
        self.url, self.tokenizer = f"http://127.0.0.1:{port}", words_tokenizer(tmp / "words")
        command = [args.forebay, "sim", "--profile", "rtx4090-tp1-qwen7b", "--port", str(port), "--served-model-name", "tiny",
                   "--no-enable-prefix-caching"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=on(SERVER), start_new_session=True)
        self.pid = self.process.pid
        wait_for(f"{self.url}/health", self.process, 20)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Real:
    def __init__(self, args, tmp):
        self.port, self.tokenizer = free_port(), args.venv / "tiny-model"
        self.url, self.script = f"http://127.0.0.1:{self.port}", pathlib.Path(__file__).with_name("serve.sh")
        self.env = os.environ | {"RUN_DIR": str(tmp)}
        command = ["bash", self.script, args.venv, str(self.port), "tiny", "--no-enable-prefix-caching"]
        subprocess.run(command, check=True, env=self.env, preexec_fn=on(SERVER))
        self.pid = int((tmp / f"{self.port}.pid").read_text())

    def stop(self):
        subprocess.run(["bash", self.script, "--stop", str(self.port)], env=self.env, check=False)


def words_tokenizer(path):
    """A tokenizer of which each token is a word of five letters, so one token for the simulated server too."""
    path.mkdir()
    vocabulary = {"<unk>": 0} | {word: number for number, word in enumerate(WORDS, 1)}
    (path / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }))
    (path / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "model_max_length": 1_000_000,
    }))
    return path


def asked(url, body):
    head = {"content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), head), timeout=30) as answer:
        return json.load(answer)


def prompts_of(server, load, seed, path):
    """A file of random prompts of the wanted length by the server's own count."""
    draw, lines = random.Random(seed), []
    for _ in range(load["prompts"]):
        text = " ".join(draw.choice(WORDS) for _ in range(load["input"]))
        tokens = asked(f"{server.url}/tokenize", {"model": "tiny", "prompt": text})["tokens"][:load["input"]]
        prompt = asked(f"{server.url}/detokenize", {"model": "tiny", "tokens": tokens})["prompt"]
        lines.append(json.dumps({"prompt": prompt}) + "\n")
    path.write_text("".join(lines))
    return path


class Tool:
    """A run of one of the two tools."""

    def __init__(self, args, server, load, seed, tmp):
        self.result, self.log = tmp / f"{self.name}.json", tmp / f"{self.name}.log"
        self.result.unlink(missing_ok=True)
        words = [str(word) for word in self.command(args, server, load, seed)]
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, cwd=tmp,
                                            env=os.environ | quiet | {"PYTHONUNBUFFERED": "1"},
                                            preexec_fn=on(CLIENT, first=args.judge))

    def figures(self):
        """Waits for its end: its figures, its counts, and what else is worth a look."""
        status = self.process.wait(600)
        if status:
            raise SystemExit(f"agreement.py: {self.name} ended with {status}:\n{self.log.read_text()[-4000:]}")
        return self.read()


class Theirs(Tool):
    name = "vllm"

    def command(self, args, server, load, seed):
        return [args.venv / "bin/vllm", "bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions",
                "--base-url", server.url, "--model", "tiny", "--tokenizer", server.tokenizer, "--dataset-name", "random",
                "--random-input-len", load["input"], "--random-output-len", load["output"],
                "--num-prompts", load["prompts"], "--request-rate", load["rate"], "--burstiness", args.burstiness,
                "--seed", seed, "--num-warmups", 1, "--temperature", 0, "--ignore-eos", "--disable-tqdm",
                "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "99",
                "--save-result", "--result-dir", self.result.parent, "--result-filename", self.result.name]

    def read(self):
        told = json.loads(self.result.read_text())
        values = {name: told[key] for name, key, *_ in figures()}
        counts = {"requests": told["completed"], "failed": told["failed"], "input tokens": told["total_input_tokens"],
                  "generated tokens": told["total_output_tokens"]}
        return values, counts, {"duration s": told["duration"]}

    def sends(self):
        """Waits until it has loaded its libraries, made its prompts and warmed up."""
        while "Starting main benchmark run" not in self.log.read_text():
            if self.process.poll() is not None:
                self.figures()
            time.sleep(0.02)


class Ours(Tool):
    name = "forebay"

    def command(self, args, server, load, seed):
        prompts = ["jsonl", "--dataset-path", load["file"]] if "file" in load else ["random"]
        return [args.forebay, "bench", server.url, "--endpoint", "chat", "--model", "tiny", "--dataset", *prompts,
                "--input-len", load["input"], "--output-len", load["output"], "--num-prompts", load["prompts"],
                "--request-rate", load["rate"], "--burstiness", args.burstiness, "--seed", seed, "--temperature", 0,
                "--ignore-eos", "--no-scrape", "--json"]

    def read(self):
        told = json.loads(self.log.read_text())["runs"][0]
        part = next(part for part in told["parts"] if part["name"] == "all")

        def at(path):
            return functools.reduce(lambda value, key: value[key], path.split("."), part)

        values = {name: at(path) if path else part["requests"] / part["duration_s"] for name, _, path, *_ in figures()}
        counts = {"requests": part["requests"], "failed": part["failed"], "input tokens": part["input_tokens"],
                  "generated tokens": part["output_tokens"]}
        return values, counts, {"duration s": part["duration_s"], "own lag P99 ms": told["lag_p99_us"] / 1e3}


def verdict(rule, a, b):
    """ok: the middle one of the pairs of their figure and ours keeps the rule. FAILED: it does not, and what lies between runs of
    a tool does not explain it (a 95 % interval of the mean ratio). open: it does not, but the pairs are too far apart to show it."""
    apart = statistics.median(y - x for x, y in zip(a, b))
    share = statistics.median(y / x for x, y in zip(a, b)) - 1
    if abs(share) <= SHARE or (rule == "2 % + 2 ms" and abs(apart) <= SHARE * statistics.median(a) + TTFT_MS):
        return "ok"
    logs = [math.log(y / x) for x, y in zip(a, b)]
    least = abs(statistics.mean(logs)) - T95[len(logs) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
    if rule == "noise":
        return "ok" if least <= 0 else "FAILED"
    return "open" if least <= math.log1p(SHARE) else "FAILED"


def cores_time():
    """The time that all cores worked so far, and their whole time, in ticks."""
    fields = [int(word) for word in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)


def in_turns(args, server, load, pair, tmp):
    for tool in (Theirs, Ours)[:: -1 if pair % 2 else 1]:
        yield tool.name, tool(args, server, load, 1 + pair, tmp).figures()


def at_once(args, server, load, pair, tmp):
    # From a file: counting the tokens of prompts, it would meet the other's first requests.
    half = load | {"rate": load["rate"] / 2, "file": prompts_of(server, load, 1 + pair, tmp / "prompts.jsonl")}
    first = Theirs(args, server, half, 1 + pair, tmp)
    first.sends()
    second = Ours(args, server, half, 1 + pair, tmp)
    yield first.name, first.figures()
    yield second.name, second.figures()


def measure(args, name, tmp):
    load = LOADS[name]
    load = load if args.judge else load | {"prompts": load["few"]}
    server = {"simulated": Simulated, "real": Real}[name](args, tmp)
    runs = {"vllm": [], "forebay": []}
    if args.judge:
        weigh(server.pid)
    try:
        how = "at once, half the rate each" if args.at_once else "in turns"
        print(f"== {name}: {load['prompts']} prompts of {load['input']} tokens, {load['output']} out, {load['rate']} a second, "
              f"burstiness {args.burstiness}; {args.pairs} pairs, {how}; server on cores {SERVER}, tools on {CLIENT}", flush=True)
        Ours(args, server, load | {"prompts": load["few"]}, 999, tmp).figures()  # a fresh server is slow
        for pair in range(args.pairs):
            before, share = cores_time(), 0
            for tool, run in (at_once if args.at_once else in_turns)(args, server, load, pair, tmp):
                now = cores_time()
                runs[tool].append(run)
                also = ", ".join(f"{key} {value:.3f}" for key, value in run[2].items())
                if now[1] > before[1] + 100:  # of two at once the second has no time of its own
                    share = (now[0] - before[0]) / (now[1] - before[1])
                print(f"pair {pair + 1} {tool:7} {also}; cores in use {share:.0%}", flush=True)
                before = now
    finally:
        server.stop()
    return report(args, runs)


def report(args, runs):
    passed = failed = 0
    for what in runs["vllm"][0][1]:
        a, b = ([counts[what] for _, counts, _ in runs[tool]] for tool in ("vllm", "forebay"))
        good = all(abs(y - x) <= SHARE * x for x, y in zip(a, b)) if what == "input tokens" else a == b
        passed, failed = passed + good, failed + (not good)
        print(f"{'ok' if good else 'FAILED':7} {what}: {a} and {b}")
    print(f"{'':7} {'figure':16} {'vllm bench serve':44} {'forebay bench':44} forebay/vllm, middle (least to most)")
    for name, _, _, rule, digits in figures():
        a, b = ([values[name] for values, *_ in runs[tool]] for tool in ("vllm", "forebay"))
        ratios = [y / x for x, y in zip(a, b)]
        word = ""
        if rule and args.judge:
            word = verdict(rule, a, b)
            passed, failed = passed + (word == "ok"), failed + (word == "FAILED")
        cells = (" ".join(f"{value:.{digits}f}" for value in values) for values in (a, b))
        print(f"{word:7} {name:16} {next(cells):44} {next(cells):44} {statistics.median(ratios):.4f} "
              f"({min(ratios):.4f} to {max(ratios):.4f}){f'  [{rule}]' if rule else ''}", flush=True)
    return passed, failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("venv", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("forebay", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--pairs", type=int, choices=range(2, 11))
    parser.add_argument("--burstiness", default="inf", help="of both tools; inf: even gaps, so that chance is not compared")
    parser.add_argument("--at-once", action="store_true", help="real: both tools at the same time, at half the rate each")
    parser.add_argument("--only", choices=LOADS)
    args = parser.parse_args()
    args.only = "real" if args.at_once else args.only
    args.judge = args.pairs is not None or os.environ.get("FOREBAY_SIZE") == "full"
    args.pairs = args.pairs or (5 if args.judge else 1)
    passed = failed = 0
    with tempfile.TemporaryDirectory() as tmp:
        for name in [args.only] if args.only else LOADS:
            good, bad = measure(args, name, pathlib.Path(tmp))
            passed, failed = passed + good, failed + bad
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
