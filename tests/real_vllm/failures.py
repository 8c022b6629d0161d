"""Forebay before real vLLM servers that hang, die, drain and shed load: what clients see of it, and what Forebay says.

    tests/real_vllm/run.sh VENV [FOREBAY]    starts everything and runs every part
    failures.py full      two servers with a short queue and small prefill chunks, the second one with --shutdown-timeout:
                          shedding, one long prompt, a hang, a drain (which ends the second server)
    failures.py deaths    two servers: 200 clients leave at once, an engine is killed, the other server gets SIGTERM (which end both)
    failures.py gpu       two servers of benches/gpu/failures.sh: a hang, 200 clients that leave, an engine that is killed

Environment: as for check.py, and RUN_DIR with PORT.pid of each server. Forebay's stall_timeout must be 2 s. One line a check;
the last line is `N passed, N failed`; exit 1 on a failure. Signals go to the servers of FOREBAY_VLLM_URLS alone, by pid.
"""

import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import signal
import sys
import threading
import time
import urllib.parse

from wire import Answer, eventually, get, post, run_checks, samples, total

URL = os.environ["FOREBAY_URL"].rstrip("/")
ADMIN = os.environ["FOREBAY_ADMIN_URL"].rstrip("/")
VLLM = [url.rstrip("/") for url in os.environ["FOREBAY_VLLM_URLS"].split(",")]
RUN_DIR = pathlib.Path(os.environ["RUN_DIR"])
FULL = os.environ.get("FOREBAY_SIZE", "ci") == "full"
MODEL = os.environ.get("FOREBAY_MODEL", "tiny")
COMPLETIONS = "/v1/completions"
STALL = 2.0
DEADLINE = 30.0
STORM = 200
CHECKS = {"full": [], "deaths": [], "gpu": []}


def check(part):
    def register(function):
        CHECKS[part].append(function)
        return function

    return register


# ---- servers -------------------------------------------------------------------------------------------------------


def server_pid(url):
    """The API server's process, as serve.sh noted it."""
    return int((RUN_DIR / f"{urllib.parse.urlsplit(url).port}.pid").read_text())


def engine_pid(url):
    """The engine's process: the server's child of that name."""
    wanted = server_pid(url)
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                name = (entry / "comm").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == wanted and "Engine" in name:
                return int(entry.name)
    raise AssertionError(f"{url} has no engine")


def authority(url):
    return urllib.parse.urlsplit(url).netloc


def state(url):
    """What Forebay thinks of a server."""
    rows = samples(get(ADMIN, "/metrics"), "forebay_backend_state", backend=authority(url))
    found = [own["state"] for own, value in rows if value == 1]
    assert len(found) == 1, f"{url}: {found}"
    return found[0]


def is_state(url, wanted):
    def probe():
        seen = state(url)
        return seen == wanted, seen

    return probe


def ejections(url, reason):
    return total(get(ADMIN, "/metrics"), "forebay_ejections_total", backend=authority(url), reason=reason)


# ---- requests ------------------------------------------------------------------------------------------------------


def body(tokens, stream=True, prompt="Why does a queue grow?"):
    return {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": stream}


class Stream(threading.Thread):
    """A client's stream: what it got of it, and how it ended."""

    def __init__(self, tokens, prompt="Why does a queue grow?"):
        super().__init__(daemon=True)
        self.body, self.tokens, self.done, self.cut = body(tokens, prompt=prompt), 0, False, False
        self.status = self.error = self.failure = self.backend = self.ended = self.finish = None
        self.start()

    def run(self):
        try:
            answer = Answer(URL, COMPLETIONS, self.body, timeout=120)
            self.status = answer.status
            self.backend = answer.header("x-forebay-backend")
            if self.status != 200:
                self.failure = answer.text()
                return
            for _, _, data in answer.events():
                if data == "[DONE]":
                    self.done = True
                elif "error" in (event := json.loads(data)):
                    self.error = event["error"]
                elif event["choices"]:
                    self.tokens += 1
                    self.finish = event["choices"][0]["finish_reason"] or self.finish
            answer.leave()
        except (http.client.HTTPException, OSError) as error:
            self.cut = True
            self.failure = repr(error)
        finally:
            self.ended = time.monotonic()

    @property
    def whole(self):
        return self.status == 200 and self.done and self.error is None and not self.cut and self.finish == "length"

    @property
    def told(self):
        """What no client takes for a whole answer: an error event (ours, or the dying engine's own), a status, or
        vLLM's own word that it gave up: told to end, it says `abort` if it gets to it, and else leaves streams hanging."""
        return self.error is not None or (self.status or 0) >= 500 or self.finish == "abort"

    def __repr__(self):
        ended = f"finish {self.finish} error {self.error} done {self.done} cut {self.cut} {self.failure}"
        return f"<{self.backend} status {self.status} tokens {self.tokens} {ended}>"


def finish(streams, limit=DEADLINE):
    end = time.monotonic() + limit
    for stream in streams:
        stream.join(max(0.0, end - time.monotonic()))
    hanging = [stream for stream in streams if stream.is_alive()]
    assert not hanging, f"{len(hanging)} of {len(streams)} streams were not told within {limit} s: {hanging[:3]}"


def start_streams(count, tokens):
    """Streams, of which each server has some, and some have tokens."""
    streams = [Stream(tokens) for _ in range(count)]
    eventually("tokens flow", lambda: (sum(stream.tokens > 3 for stream in streams) >= 4, streams), DEADLINE)
    return streams


# ---- shedding ------------------------------------------------------------------------------------------------------


def closed_loop(bases, clients, seconds, tokens):
    """Whole answers a second of so many clients in a closed loop; one that is turned away comes back after 50 ms."""
    end = time.monotonic() + seconds
    counts = [0] * clients
    turned = [0] * clients

    def client(number):
        base = bases[number % len(bases)]
        while time.monotonic() < end:
            answer, text = post(base, COMPLETIONS, body(tokens, stream=False))
            if answer.status == 200:
                counts[number] += 1
            else:
                assert answer.status == 503, f"{answer.status}: {text[:200]}"
                turned[number] += 1
                time.sleep(0.05)

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(client, number) for number in range(clients)]:
            done.result()
    return sum(counts) / seconds, sum(turned)


@check("full")
def shedding_servers_are_kept_busy():
    # Short rounds in turn, so that what else the machine does falls on both; as many as a noisy machine needs.
    least, most, seconds, clients = (12, 40, 2, 32) if FULL else (6, 24, 2, 32)
    through, direct, turned = [], [], 0
    closed_loop(VLLM, clients, seconds, 100)
    while len(direct) < least or (sum(through) < 0.9 * sum(direct) and len(direct) < most):
        direct.append(closed_loop(VLLM, clients, seconds, 100)[0])
        rate, away = closed_loop([URL], clients, seconds, 100)
        through.append(rate)
        turned += away
    ratio = sum(through) / sum(direct)
    assert turned > 0, "nobody was turned away: this is no overload"
    for url in VLLM:
        assert state(url) == "healthy", f"{url} is {state(url)}: 503 is no illness"
    pairs = ", ".join(f"{t:.0f}/{d:.0f}" for t, d in zip(through, direct))
    assert ratio >= 0.9, f"{ratio:.2f} of the answers; a second, through/direct: {pairs}"
    return f"{ratio:.2f} of the answers a second without Forebay ({pairs}); {turned} turned away"


# ---- hangs ---------------------------------------------------------------------------------------------------------


@check("full")
def a_long_prompt_in_many_chunks_is_no_hang():
    before = total(get(ADMIN, "/metrics"), "forebay_ejections_total")
    numbers = random.Random(time.time_ns())  # nothing of it is in a prefix cache
    for words in (2000, 4000, 8000):
        started = time.monotonic()
        prompt = " ".join(str(numbers.randrange(100, 1000)) for _ in range(words))
        answer, text = post(URL, COMPLETIONS, body(1, stream=False, prompt=prompt))
        took = time.monotonic() - started
        assert answer.status == 200, f"{answer.status}: {text[:300]}"
        if took > 1.5 * STALL:
            break
    assert took > 1.2 * STALL, f"the longest took only {took:.1f} s: it shows nothing"
    after = total(get(ADMIN, "/metrics"), "forebay_ejections_total")
    assert after == before, f"{after - before} ejections"
    return f"{json.loads(text)['usage']['prompt_tokens']} tokens, {took:.1f} s with stall_timeout {STALL} s"


@check("gpu")
@check("full")
def a_stopped_engine_is_found_and_used_again():
    url = VLLM[1]
    streams = start_streams(6, 1500)
    engine = engine_pid(url)
    stopped = time.monotonic()
    os.kill(engine, signal.SIGSTOP)
    try:
        found = eventually("the ejection", is_state(url, "ejected"), DEADLINE)
        finish(streams)
        there = [stream for stream in streams if stream.backend == authority(url) and not stream.whole]
        moved = sum(stream.whole for stream in streams)
        assert all(stream.whole or stream.told for stream in streams), streams
        assert ejections(url, "watchdog") >= 1, "it went out for another reason"
        for _ in range(10):
            answer, _ = post(URL, COMPLETIONS, body(4, stream=False))
            assert answer.status == 200 and answer.header("x-forebay-backend") != authority(url)
        time.sleep(max(0.0, 10 - (time.monotonic() - stopped)))
    finally:
        os.kill(engine, signal.SIGCONT)
    back = eventually("its return", is_state(url, "healthy"), DEADLINE)

    def used():  # one at a time may all go to the other, which is idle and known to be fast
        asked = [Answer(URL, COMPLETIONS, body(16, stream=False)) for _ in range(8)]
        seen = [(answer.status, answer.header("x-forebay-backend")) for answer in asked]
        for answer in asked:
            answer.leave()
        return (200, authority(url)) in seen, seen

    eventually("its use", used, DEADLINE)
    return f"out after {found:.1f} s, {len(there)} of 6 streams told, {moved} whole; in use {back:.1f} s after SIGCONT"


# ---- ends ----------------------------------------------------------------------------------------------------------


@check("full")
def a_server_that_drains_loses_nothing():
    url = VLLM[1]
    results, stop = [], threading.Event()

    def client():
        while not stop.is_set():
            answer, text = post(URL, COMPLETIONS, body(300, stream=False))
            results.append((answer.status, text[:200]))

    # As much as the other server has room for: its own 503 is another matter.
    streams = [Stream(1500) for _ in range(2)]
    eventually("tokens flow", lambda: (all(stream.tokens > 3 for stream in streams), streams), DEADLINE)
    clients = [threading.Thread(target=client, daemon=True) for _ in range(2)]
    for one in clients:
        one.start()
    os.kill(server_pid(url), signal.SIGTERM)
    finish(streams, 60)
    eventually("its ejection", is_state(url, "ejected"), 60)
    stop.set()
    for one in clients:
        one.join(DEADLINE)
    failed = [stream for stream in streams if not stream.whole]
    assert not failed, failed
    bad = [result for result in results if result[0] != 200]
    assert not bad, f"{len(bad)} of {len(results)}: {bad[:3]}"
    return f"{len(streams)} streams and {len(results)} requests, 0 failed"


@check("gpu")
@check("deaths")
def a_storm_that_leaves_frees_the_engines():
    def at_work():
        texts = [get(url, "/metrics") for url in VLLM]
        return sum(total(text, f"vllm:num_requests_{kind}") for text in texts for kind in ("running", "waiting"))

    asked = [Answer(URL, COMPLETIONS, body(1500, prompt=f"{number}: why does a queue grow?")) for number in range(STORM)]
    eventually("they are at work", lambda: ((seen := at_work()) >= 0.9 * STORM, f"{seen:g} requests"), DEADLINE)
    left = time.monotonic()
    for one in asked:
        one.leave()
    took = time.monotonic() - left
    idle = eventually("engines idle", lambda: ((seen := at_work()) == 0, f"{seen:g} requests"), DEADLINE)
    for url in VLLM:
        assert state(url) == "healthy", f"{url} is {state(url)}: clients that leave are no illness"
    answer, text = post(URL, COMPLETIONS, body(4, stream=False))
    assert answer.status == 200, f"{answer.status}: {text[:200]}"
    return f"{STORM} left within {took:.2f} s; vLLM ran nothing {idle:.2f} s later, and the next request was answered"


@check("gpu")
@check("deaths")
def a_killed_engine_costs_only_what_had_tokens():
    streams = start_streams(30, 600)
    # The one that has most of them, which is a real loss, however they were divided.
    url = max(VLLM, key=lambda url: sum(stream.backend == authority(url) for stream in streams))
    had = {stream: stream.tokens for stream in streams}
    os.kill(engine_pid(url), signal.SIGKILL)
    finish(streams, 60)
    whole = [stream for stream in streams if stream.whole]
    lost = [stream for stream in streams if not stream.whole]
    assert lost, "none was on the engine that was killed"
    for stream in lost:
        assert stream.told, f"not told: {stream}"
        assert stream.backend == authority(url) and stream.tokens > 0, f"it could have been saved: {stream}"
    saved = [stream for stream in whole if had[stream] == 0]
    waited = eventually("its ejection", is_state(url, "ejected"), DEADLINE)
    shown = f"{len(whole)} of 30 whole ({len(saved)} of them without a token when it died), {len(lost)} told"
    return f"{shown}; out {waited:.1f} s after the last end"


@check("deaths")
def streams_that_a_terminated_server_leaves_hanging_are_told():
    url = next(url for url in VLLM if state(url) != "ejected")
    streams = start_streams(6, 1900)
    started = time.monotonic()
    os.kill(server_pid(url), signal.SIGTERM)
    finish(streams)
    took = max(stream.ended for stream in streams) - started
    assert all(stream.told or stream.whole for stream in streams), streams
    told, aborted = sum(stream.told for stream in streams), sum(stream.finish == "abort" for stream in streams)
    return f"{told} of 6 told ({aborted} of them by vLLM's own abort), the last {took:.1f} s after SIGTERM"


if __name__ == "__main__":
    sys.exit(run_checks(CHECKS[sys.argv[1]]))
