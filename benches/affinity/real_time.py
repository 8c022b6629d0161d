#!/usr/bin/env python3
"""Measures in real time how well Forebay places shared prefixes: TTFT before two simulated H200 servers.

    benches/affinity/real_time.py FOREBAY [--sim BINARY] [--seeds 1,2,3]

FOREBAY runs the proxy and the servers. --sim names another binary for the servers, so that two proxies can be
compared before the same servers.

One server's KV cache holds 45 of the 60 prefixes; two hold them all. Each seed gets fresh servers and sends the prompts
of vLLM's `prefix_repetition` dataset for 30 s: 60 prefixes of 4,096 tokens in random order, 128 tokens of their own,
64 tokens of answer, 48 requests/s (a Poisson process). A run passes if the TTFT of its second half has a median of at
most 60 ms and a P99 of at most 400 ms. Exit 1 if a seed did not pass, 2 if nothing could be measured.

`late P99` is how far behind schedule the requests were sent. If it is more than a few milliseconds, the machine was
too busy for a fair measurement. Needs two cores, Python 3.9, and about four minutes. All traffic stays on loopback.
"""

import argparse
import asyncio
import contextlib
import json
import math
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

PREFIXES, PREFIX_TOKENS, OWN_TOKENS, OUTPUT_TOKENS = 60, 4096, 128, 64
RATE = 48.0  # requests a second
SECONDS = 30
KV_TOKENS = 187_000  # of each server
PROFILE = "h200-tp1-qwen7b"
MEDIAN_LIMIT, P99_LIMIT = 0.060, 0.400  # seconds
ANSWERS_LIMIT = 60.0  # seconds after the last request, in which every answer must end
LATE_LIMIT = 0.020  # seconds: above it the report says that the machine was busy
MODEL = "m"


# ---- processes -----------------------------------------------------------------------------------------------------


def free_ports(count):
    """Returns loopback ports that nothing uses now."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@contextlib.contextmanager
def process(command, log, ready_url):
    """Runs a command until the block ends, however it ends; enters when `ready_url` answers 200."""
    with log.open("w") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not answers(ready_url):
            if child.poll() is not None or time.monotonic() > deadline:
                state = "ended" if child.poll() is not None else "was not ready after 30 s"
                raise RuntimeError(f"`{' '.join(map(str, command))}` {state}. The end of its log:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def fetch(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


def answers(url):
    try:
        fetch(url)
        return True
    except OSError:
        return False


def cache_counters(ports):
    """Returns the tokens found in the servers' prefix caches and the tokens looked for, since they started."""
    sums = {"hits": 0.0, "queries": 0.0}
    line = re.compile(r"^vllm:prefix_cache_(hits|queries)_total(?:\{.*?\})? (\S+)$", re.M)
    for port in ports:
        for name, value in line.findall(fetch(f"http://127.0.0.1:{port}/metrics")):
            sums[name] += float(value)
    return sums["hits"], sums["queries"]


# ---- load ----------------------------------------------------------------------------------------------------------


def words(rng, count):
    """Returns a text of `count` words, each one token of the simulated tokenizer."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return "".join(" " + "".join(rng.choices(letters, k=rng.randint(2, 6))) for _ in range(count))


def requests_of(seed):
    """Returns (seconds after the start, HTTP request) of every request of one run, in order."""
    rng = random.Random(seed)
    count = round(RATE * SECONDS)
    prefixes = [words(rng, PREFIX_TOKENS) for _ in range(PREFIXES)]
    order = [number % PREFIXES for number in range(count)]
    rng.shuffle(order)
    made, at = [], 0.0
    for prefix in order:
        at += rng.expovariate(RATE)
        body = {
            "model": MODEL,
            "prompt": prefixes[prefix] + words(rng, OWN_TOKENS),
            "max_tokens": OUTPUT_TOKENS,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        raw = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: forebay\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        made.append((at, head.encode() + raw))
    return made


class Exchange(asyncio.Protocol):
    """One connection with one request at a time: the time of its first token and whether the answer was whole."""

    def __init__(self):
        self.transport = self.done = None

    def connection_made(self, transport):
        self.transport = transport

    def start(self, request):
        self.sent, self.first, self.read, self.head, self.tokens = time.monotonic(), None, b"", None, 0
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.done

    def data_received(self, data):
        if self.done is None or self.done.done():
            return
        now = time.monotonic()
        self.read += data
        if self.head is None:
            if b"\r\n\r\n" not in self.read:
                return
            self.head, self.read = self.read.split(b"\r\n\r\n", 1)
            if not self.head.startswith(b"HTTP/1.1 200"):
                self.end(self.head.split(b"\r\n")[0].decode())
                return
        events = self.read.split(b"\n\n")
        self.read = events.pop()
        for event in events:
            if self.first is None and b'"text":' in event:
                self.first = now - self.sent
            # A chunk may carry several tokens, so the usage at the end is what counts.
            if usage := re.search(rb'"completion_tokens":\s*(\d+)', event):
                self.tokens = int(usage[1])
        # The last chunk of the body: the connection takes another request after it.
        if self.read.endswith(b"\r\n0\r\n\r\n"):
            self.end(None)

    def connection_lost(self, _):
        if self.done is not None:
            self.end("the connection closed early")

    def end(self, failure):
        if not self.done.done():
            if failure is None and (self.first is None or self.tokens != OUTPUT_TOKENS):
                failure = f"an answer of {self.tokens} tokens, not {OUTPUT_TOKENS}"
            self.done.set_result(failure)


async def send_all(port, requests, at_half):
    """Sends them on schedule. Returns TTFTs in seconds by request, failures by text, and how late each was sent."""
    loop = asyncio.get_running_loop()
    idle, ttfts, failures, late = [], [math.inf] * len(requests), {}, []

    async def one(number, request):
        try:
            exchange = idle.pop() if idle else None
            if exchange is None or exchange.transport.is_closing():
                _, exchange = await loop.create_connection(Exchange, "127.0.0.1", port)
            failure = await exchange.start(request)
        except OSError as error:
            failure = str(error)
        if failure is None:
            ttfts[number] = exchange.first
            idle.append(exchange)
        else:
            failures[failure] = failures.get(failure, 0) + 1

    start, asked, half = loop.time() + 0.2, [], None
    for number, (at, request) in enumerate(requests):
        await asyncio.sleep(max(0.0, start + at - loop.time()))
        late.append(loop.time() - start - at)
        asked.append(asyncio.create_task(one(number, request)))
        if number == len(requests) // 2:
            half = loop.run_in_executor(None, at_half)
    _, open_still = await asyncio.wait(asked, timeout=ANSWERS_LIMIT)
    for task in open_still:
        task.cancel()
    if open_still:
        failures[f"no end within {ANSWERS_LIMIT:.0f} s"] = len(open_still)
    for exchange in idle:
        exchange.transport.close()
    return ttfts, failures, late, await half


# ---- the runs ------------------------------------------------------------------------------------------------------


def quantile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


def run(forebay, sim, seed, folder):
    """Runs one seed with fresh processes and prints a line. Returns whether it passed."""
    listen, admin, *sims = free_ports(4)
    config = folder / "forebay.toml"
    config.write_text(
        f'[listen]\naddress = "127.0.0.1:{listen}"\n[admin]\naddress = "127.0.0.1:{admin}"\n'
        f'[[pools]]\nmodel = "{MODEL}"\naffinity = "prefix"\n'
        f'backends = [{", ".join(f"""{{ url = "http://127.0.0.1:{port}" }}""" for port in sims)}]\n'
    )
    requests = requests_of(seed)
    with contextlib.ExitStack() as stack:
        for place, port in enumerate(sims):
            options = ["--profile", PROFILE, "--kv-tokens", KV_TOKENS, "--port", port, "--served-model-name", MODEL]
            command = [sim, "sim", *map(str, options), "--seed", str(2 * seed + place)]
            stack.enter_context(process(command, folder / f"{port}.log", f"http://127.0.0.1:{port}/health"))
        command = [forebay, "serve", "--config", str(config)]
        stack.enter_context(process(command, folder / "forebay.log", f"http://127.0.0.1:{admin}/ready"))
        ttfts, failures, late, half = asyncio.run(send_all(listen, requests, lambda: cache_counters(sims)))
        hits, queries = (end - middle for end, middle in zip(cache_counters(sims), half))
    second = ttfts[len(ttfts) // 2 :]
    median, p99 = quantile(second, 0.5), quantile(second, 0.99)
    passed = not failures and median <= MEDIAN_LIMIT and p99 <= P99_LIMIT
    print(
        f"seed {seed}: median TTFT {median * 1e3:.1f} ms, P99 {p99 * 1e3:.0f} ms, {hits / max(queries, 1):.1%} of prompt tokens cached, "
        f"late P99 {quantile(late, 0.99) * 1e3:.1f} ms: {'pass' if passed else 'FAIL'}",
        flush=True,
    )
    for failure, count in failures.items():
        print(f"  {count} requests failed: {failure}")
    if quantile(late, 0.99) > LATE_LIMIT:
        print("  The machine was too busy: requests were sent late. Repeat this when nothing else runs.")
    return passed


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("forebay", metavar="FOREBAY")
    options.add_argument("--sim", metavar="BINARY", help="the binary of the simulated servers [default: FOREBAY]")
    options.add_argument("--seeds", default="1,2,3", type=lambda text: [int(one) for one in text.split(",")])
    options = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes started here end, too
    try:
        with tempfile.TemporaryDirectory() as folder:
            passed = [run(options.forebay, options.sim or options.forebay, seed, pathlib.Path(folder)) for seed in options.seeds]
    except (OSError, RuntimeError) as error:
        print(f"Nothing was measured: {error}", file=sys.stderr)
        return 2
    print(
        f"{sum(passed)} of {len(passed)} seeds pass (median at most {MEDIAN_LIMIT * 1e3:.0f} ms, P99 at most {P99_LIMIT * 1e3:.0f} ms)"
    )
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
