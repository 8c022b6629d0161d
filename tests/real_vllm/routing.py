"""Routing before two real vLLM servers of which the second runs one sequence at once: predicted_ttft beside round_robin.

    routing.py [streams | embeddings]      run.sh starts the servers; embeddings wants them with --runner pooling

Environment: FOREBAY (the binary), FOREBAY_VLLM_URLS (two, comma separated, the slow one second), RUN_DIR (for config files and
logs), FOREBAY_SIZE (ci or full). Two Forebays stand before the same servers, one for each policy, and get the same
arrivals in turns. One line a check; the last line is `N passed, N failed`; exit 1 on a failure.
"""

import concurrent.futures
import json
import os
import pathlib
import random
import socket
import statistics
import subprocess
import sys
import time

from wire import Answer, eventually, get, post, run_checks, total

FOREBAY = os.environ["FOREBAY"]
FAST, SLOW = (url.rstrip("/") for url in os.environ["FOREBAY_VLLM_URLS"].split(","))
RUN_DIR = pathlib.Path(os.environ["RUN_DIR"])
FULL = os.environ.get("FOREBAY_SIZE", "ci") == "full"
PAIRS = 10 if FULL else 5
SECONDS = 10 if FULL else 5  # of arrivals in one run
RATE = 24  # requests a second: half of it is more than one sequence at once can do, even on a fast machine (under 0.9 ms a step)
TOKENS = 96
POLICIES = ("predicted_ttft", "round_robin")
CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Forebay:
    """A process with one policy; both backends in one pool."""

    def __init__(self, policy):
        self.policy = policy
        listen, admin = free_port(), free_port()
        self.url, self.admin = f"http://127.0.0.1:{listen}", f"http://127.0.0.1:{admin}"
        config = RUN_DIR / f"{policy}.toml"
        config.write_text(
            f'[listen]\naddress = "127.0.0.1:{listen}"\n[admin]\naddress = "127.0.0.1:{admin}"\n'
            f'[[pools]]\nmodel = "tiny"\npolicy = "{policy}"\n'
            f'backends = [{{ url = "{FAST}" }}, {{ url = "{SLOW}" }}]\n'
        )
        self.log = (RUN_DIR / f"{policy}.log").open("w")
        self.process = subprocess.Popen([FOREBAY, "serve", "--config", config], stdout=self.log, stderr=self.log)

    def __enter__(self):
        eventually(f"{self.policy} ready", self.ready, 30)
        return self

    def ready(self):
        try:
            return get(self.admin, "/ready", timeout=2) == "ready\n", "an answer"
        except (OSError, AssertionError) as error:
            return False, error

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()

    def served(self, url):
        return total(get(self.admin, "/metrics"), "forebay_requests_total", backend=url.removeprefix("http://"))


def stream_ttft(url, number):
    """Seconds to the first event; the rest is read."""
    answer = Answer(url, CHAT, chat(number) | {"stream": True})
    assert answer.status == 200, answer.text()
    times = [after for after, _, data in answer.events() if data != "[DONE]"]
    answer.leave()
    return times[0]


def unary_time(url, number):
    """Seconds to the whole answer."""
    sent = time.monotonic()
    answer, text = post(url, CHAT, chat(number))
    assert answer.status == 200, text
    return time.monotonic() - sent


def embedding_time(url, number):
    sent = time.monotonic()
    answer, text = post(url, EMBEDDINGS, {"model": "tiny", "input": f"passage {number}: " + "a queue grows. " * 60})
    assert answer.status == 200, text
    return time.monotonic() - sent


def chat(number):
    text = f"Question {number}: why does a queue grow when {number * 7} requests arrive at once?"
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
    }


def run(url, ask, seed, rate=RATE):
    """The seconds of every request of one run: Poisson arrivals, open loop; a failed one fails the check."""
    rng, at, arrivals = random.Random(seed), 0.0, []
    while (at := at + rng.expovariate(rate)) < SECONDS:
        arrivals.append(at)
    with concurrent.futures.ThreadPoolExecutor(len(arrivals)) as pool:
        started, asked = time.monotonic(), []
        for number, at in enumerate(arrivals):
            time.sleep(max(0.0, started + at - time.monotonic()))
            asked.append(pool.submit(ask, url, seed * 10_000 + number))
        return sorted(one.result() for one in asked)


def quantile(values, share):
    return values[min(len(values) - 1, int(share * len(values)))]


def pairs(ask, what, rate=RATE):
    """Runs the pairs; fails unless the default's P99 is below round robin's in the middle pair and in most of them."""
    shown, ratios = [], []
    with Forebay(POLICIES[0]) as default, Forebay(POLICIES[1]) as turns:
        for url in (default.url, turns.url):
            run(url, ask, 0, rate=4)  # the first requests of a fresh engine are slow, and nothing is measured yet
        for seed in range(1, PAIRS + 1):
            order = (default, turns) if seed % 2 else (turns, default)
            p99 = {one.policy: quantile(run(one.url, ask, seed, rate), 0.99) for one in order}
            ratios.append(p99[POLICIES[0]] / p99[POLICIES[1]])
            shown.append(f"{p99[POLICIES[0]]:.2f}/{p99[POLICIES[1]]:.2f}")
        parts = {one.policy: one.served(SLOW) / (one.served(SLOW) + one.served(FAST)) for one in (default, turns)}
    note = f"P99 {what} in s, {' / '.join(POLICIES)}: {' '.join(shown)}; middle ratio {statistics.median(ratios):.2f}; "
    note += f"the slow one served {parts[POLICIES[0]]:.0%} / {parts[POLICIES[1]]:.0%}"
    assert statistics.median(ratios) < 1 and sum(ratio < 1 for ratio in ratios) > len(ratios) / 2, note
    assert parts[POLICIES[0]] > 0, f"the slow one starved: {note}"
    return note


def streams_wait_less_than_by_turns():
    return pairs(stream_ttft, "TTFT")


def unary_requests_wait_less_than_by_turns():
    return pairs(unary_time, "E2E")


def explain_names_the_queue():
    """With the slow server's queue full, the explanation says that the choice avoids it for what waits there."""
    request = RUN_DIR / "request.json"
    request.write_text(json.dumps(chat(1)))
    with Forebay(POLICIES[0]) as forebay, concurrent.futures.ThreadPoolExecutor(12) as pool:
        # Load that is not this Forebay's own: it shows in vLLM's queue depth, and is scraped.
        held = [pool.submit(post, SLOW, CHAT, chat(number) | {"max_tokens": 800}) for number in range(12)]

        def queue():
            depth = total(get(forebay.admin, "/metrics"), "forebay_backend_queue_depth")
            return depth >= 5, f"a queue of {depth:g}"

        eventually("the queue seen by Forebay", queue, 20)
        said = subprocess.run(
            [FOREBAY, "explain", "--url", forebay.admin, request], capture_output=True, text=True, timeout=30
        )
        for one in held:
            one.result()
    assert said.returncode == 0, said.stderr
    fast = f"({FAST.removeprefix('http://')}): "
    reasons = [line for line in said.stdout.splitlines() if fast in line]
    assert len(reasons) == 1 and "waits behind" in reasons[0] and "queued prompt tokens" in reasons[0], said.stdout
    return reasons[0]


def embeddings_starve_nobody():
    """Work without a decode: every request is answered, and both servers have a part in it."""
    with Forebay(POLICIES[0]) as forebay:
        # So many that more than one is in flight: with one at a time either server may do nearly all of them.
        times = run(forebay.url, embedding_time, 1, rate=120)
        parts = forebay.served(FAST), forebay.served(SLOW)
    note = f"{len(times)} answered, P50 {quantile(times, 0.5):.3f} s, P99 {quantile(times, 0.99):.3f} s; {parts[0]:g} and {parts[1]:g} by server"
    assert min(parts) > 0.05 * sum(parts), note
    return note


CHECKS = {
    "streams": [streams_wait_less_than_by_turns, unary_requests_wait_less_than_by_turns, explain_names_the_queue],
    "embeddings": [embeddings_starve_nobody],
}


if __name__ == "__main__":
    sys.exit(run_checks(CHECKS[sys.argv[1] if len(sys.argv) > 1 else "streams"]))
