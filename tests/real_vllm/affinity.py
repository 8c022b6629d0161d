"""Placement of shared prefixes before two real vLLM servers: how much of every prompt the servers find in their own caches.

    affinity.py prefixes      run.sh starts two servers with a small KV cache, and a Forebay with its defaults before them

One server's cache is too small for all prefixes, and two together hold them. So a router gets a high hit rate only if it gives
each prefix one home and keeps it there. With perfect placement each prefix is cached after its first use. The lengths of the
prompts, in whole blocks, say what hit rate that gives.

Environment: FOREBAY_URL, FOREBAY_ADMIN_URL, FOREBAY_VLLM_URLS (two, comma separated), FOREBAY_MODEL (tiny), FOREBAY_SIZE (ci
or full). One line a check; the last line is `N passed, N failed`; exit 1 on a failure.
"""

import concurrent.futures
import json
import os
import random
import sys
import time

from wire import eventually, get, post, run_checks, samples, stream, total

URL = os.environ["FOREBAY_URL"].rstrip("/")
ADMIN = os.environ["FOREBAY_ADMIN_URL"].rstrip("/")
VLLM = [url.rstrip("/") for url in os.environ["FOREBAY_VLLM_URLS"].split(",")]
MODEL = os.environ.get("FOREBAY_MODEL", "tiny")
FULL = os.environ.get("FOREBAY_SIZE", "ci") == "full"
COMPLETIONS = "/v1/completions"
PREFIXES = 20
PREFIX_TOKENS = 1024  # at least
OWN_WORDS = 6  # of each prompt behind its prefix
OUTPUT_TOKENS = 16
USES = 24 if FULL else 12  # of each prefix in one half of the run
RATE = 16  # requests a second: a Poisson process
SHARE = 0.9  # of the perfect hit rate
SETTLE = 20.0  # seconds in which the servers' counters must reach what they come to
WORDS = "river gauge gate water mark queue token block cache prompt server stream field stone winter harbour letter".split()


def capacity(url):
    """Returns the tokens that a server's KV cache holds, and the tokens in one block, by its own metrics."""
    ((labels, _),) = samples(get(url, "/metrics"), "vllm:cache_config_info")
    block = int(labels["block_size"])
    return int(labels["num_gpu_blocks"]) * block, block


def counters():
    """Returns the tokens found in the servers' prefix caches and the tokens looked for."""
    texts = [get(url, "/metrics") for url in VLLM]
    return tuple(sum(total(text, f"vllm:prefix_cache_{name}_total") for text in texts) for name in ("hits", "queries"))


def token_ids(text):
    return json.loads(post(VLLM[0], "/tokenize", {"model": MODEL, "prompt": text})[1])["tokens"]


def words(rng, count):
    return "".join(f" {rng.choice(WORDS)}" for _ in range(count))


def prefix_text(rng, number):
    text = f"Document {number} says:"
    while len(token_ids(text)) < PREFIX_TOKENS:
        text += words(rng, 32)
    return text


def arrivals(rng, prefixes):
    """Returns (seconds after the start, place of the prefix, prompt) of every request of one half of the run."""
    order, at, made = list(range(len(prefixes))) * USES, 0.0, []
    rng.shuffle(order)
    for place in order:
        at += rng.expovariate(RATE)
        made.append((at, place, prefixes[place] + f". Question {rng.randrange(10**6)}:" + words(rng, OWN_WORDS) + "?"))
    return made


def ask(prompt):
    """Seconds to the first event of a stream that is read to its end."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": OUTPUT_TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
    _, events = stream(URL, COMPLETIONS, body)
    return events[0][0]


def send(half):
    """Sends them on schedule, however slow the answers are; fails if one failed. Returns the sorted TTFTs in seconds."""
    with concurrent.futures.ThreadPoolExecutor(len(half)) as pool:
        started, asked = time.monotonic(), []
        for at, _, prompt in half:
            time.sleep(max(0.0, started + at - time.monotonic()))
            asked.append(pool.submit(ask, prompt))
        return sorted(one.result() for one in asked)


def shared_tokens(one, other, block):
    """Tokens with which both begin, in whole blocks."""
    same = next((place for place, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    return same // block * block


def prefixes_stay_in_the_caches_that_hold_them():
    """The hit rate of the second half of the run is at least SHARE of what perfect placement gives."""
    rng = random.Random(1)
    room, block = capacity(VLLM[0])
    prefixes = [prefix_text(rng, number) for number in range(PREFIXES)]
    wanted = sum(len(token_ids(text)) // block * block for text in prefixes)
    assert room < wanted < 2 * room, f"{wanted} tokens of prefixes do not suit caches of {room} tokens"
    first, second = arrivals(rng, prefixes), arrivals(rng, prefixes)

    # What perfect placement finds in the second half: what each prompt shares with the first one of its prefix.
    known = {place: token_ids(prompt) for _, place, prompt in reversed(first)}
    prompts = [(place, token_ids(prompt)) for _, place, prompt in second]
    tokens = sum(len(ids) for _, ids in prompts)
    perfect = sum(shared_tokens(ids, known[place], block) for place, ids in prompts) / tokens

    for url in VLLM:  # the first requests of a fresh engine are slow
        post(url, COMPLETIONS, {"model": MODEL, "prompt": "warm", "max_tokens": 4})
    begun = counters()[1]
    first_tokens = sum(len(token_ids(prompt)) for _, _, prompt in first)
    send(first)

    def counted(least):
        def probe():
            queries = counters()[1] - begun
            return queries >= least, f"{queries:g} of {least} prompt tokens counted"

        return probe

    eventually("the counters of the first half", counted(first_tokens), SETTLE)
    hits, queries = counters()
    ttfts = send(second)
    eventually("the counters of the second half", counted(first_tokens + tokens), SETTLE)
    after = counters()
    rate = (after[0] - hits) / (after[1] - queries)
    expected = total(get(ADMIN, "/metrics"), "forebay_expected_cached_tokens_total")
    note = (
        f"hit rate {rate:.3f}, perfect {perfect:.3f}: {rate / perfect:.1%} of it; {len(second)} requests, {wanted} tokens of prefixes "
        f"before two caches of {room}; in both halves {after[0]:.0f} tokens found, {expected:.0f} expected by Forebay, "
        f"which takes four bytes for a token; "
        f"TTFT median {ttfts[len(ttfts) // 2] * 1e3:.0f} ms, P99 {ttfts[int(0.99 * len(ttfts))] * 1e3:.0f} ms"
    )
    assert rate >= SHARE * perfect, note
    return note


CHECKS = {"prefixes": [prefixes_stay_in_the_caches_that_hold_them]}


if __name__ == "__main__":
    sys.exit(run_checks(CHECKS[sys.argv[1] if len(sys.argv) > 1 else "prefixes"]))
