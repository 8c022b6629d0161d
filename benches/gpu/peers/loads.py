"""The loads of peers.sh, as traces that `vllm bench serve` and `forebay bench` replay (`--dataset-name timed_trace`).

Each size follows from what two servers can do: Qwen2.5-7B on one H200 that both share, 10 GiB of KV cache each. A token takes 56 KiB of it, so a
server holds 187,000 tokens. The GPU computes about 36,000 prompt tokens a second, and has 17,000 output tokens a second at a batch of 300. On two
GPUs, give twice the rate.

A turn's texts are its own: the ids of its chunks begin at its number. Contenders of one round get the same times, lengths and order.
"""

import itertools
import random

CHUNK = 64
"""Tokens that one id of a trace stands for."""


class Turn:
    """What is sent: the first requests, which prime the caches and do not count, and the load."""

    def __init__(self, number):
        self._ids = itertools.count(number * 10**6)
        self.primers = []
        self.load = []

    def text(self, tokens):
        """Ids of new text, which occurs nowhere else."""
        return [next(self._ids) for _ in range(-(-tokens // CHUNK))]

    @staticmethod
    def request(at, home, ids, tokens, answer):
        return {"timestamp": round(at, 4), "input_length": tokens, "output_length": answer, "hash_ids": ids, "home": home}

    def trace(self):
        """All requests by their times, and when the load begins. A pause lies between: the servers are idle then."""
        begin = self.primers[-1]["timestamp"] + 2.0 if self.primers else 0.0
        later = [request | {"timestamp": round(request["timestamp"] + begin, 4)} for request in self.load]
        return self.primers + later, begin


def arrivals(rng, rate, seconds):
    """Times of a Poisson process, given how many there are."""
    return sorted(rng.uniform(0, seconds) for _ in range(round(rate * seconds)))


def hetero(turn, rng, rate, seconds, _scale):
    """512 tokens in, 256 out. In perfect placement the server with 32 places has a third: 32 sequences of 3.3 s are 9.7 a second at most."""
    for n, at in enumerate(arrivals(rng, rate, seconds)):
        turn.load.append(turn.request(at, int(n % 3 == 2), turn.text(512), 512, 256))


def shared_prefixes(turn, rng, rate, seconds, number, home):
    prefixes = [turn.text(4096) for _ in range(number)]
    request = lambda at, i: turn.request(at, home(i), prefixes[i] + turn.text(128), 4096 + 128, 64)
    for n, i in enumerate(rng.sample(range(number), number)):
        turn.primers.append(request(n / 12, i))
    turn.load = [request(at, rng.randrange(number)) for at in arrivals(rng, rate, seconds)]


def prefix(turn, rng, rate, seconds, scale):
    """60 prefixes of 4,096 tokens are 245,760: 1.3 times what one server holds, 0.66 times what two hold."""
    shared_prefixes(turn, rng, rate, seconds, max(2, round(60 * scale)), lambda i: i % 2)


def half(turn, rng, rate, seconds, scale):
    """45 such prefixes are 184,320 tokens: 0.66 times what both hold, of which the second has a third."""
    shared_prefixes(turn, rng, rate, seconds, max(3, round(45 * scale)), lambda i: int(i % 3 == 2))


def chat(turn, rng, rate, seconds, _scale):
    """Conversations of 2 to 10 turns, 2.5 s apart, with one of six system prompts of 1,024 tokens. A turn adds 128 to 768 tokens and an answer
    of 128, which the next prompt repeats. Conversations began 40 s before; the last turn of each before the begin is a primer. Times are
    stretched so that the rate is met exactly."""
    systems = [turn.text(1024) for _ in range(6)]
    now, number, turns, last = -40.0, 0, [], {}
    while now < 2 * seconds:
        now += rng.expovariate(rate / 6)
        number += 1
        at, ids = now, list(rng.choice(systems))
        for _ in range(rng.randint(2, 10)):
            ids = ids + turn.text(rng.randrange(128, 832, CHUNK))
            request = turn.request(at, number % 2, ids, len(ids) * CHUNK, 128)
            if at < 0:
                last[number] = request
            else:
                turns.append((at, number, request))
            ids = ids + turn.text(128)
            at += rng.uniform(1.5, 3.5)
    turns.sort(key=lambda one: one[0])
    turns = turns[: round(rate * seconds)]
    going_on = sorted({number for _, number, _ in turns} & set(last))
    turn.primers = [last[number] | {"timestamp": round(n / 16, 4)} for n, number in enumerate(going_on)]
    turn.load = [request | {"timestamp": round(at * seconds / turns[-1][0], 4)} for at, _, request in turns]


def mixed(turn, rng, rate, seconds, _scale):
    """100 to 4,000 tokens in, 192 out, nothing shared: 24,600 prompt tokens a second at 12 requests, 70 % of what the GPU computes. Perfect
    placement sends each to the server that has had fewer prompt tokens."""
    had = [0, 0]
    for at in arrivals(rng, rate, seconds):
        tokens = rng.randint(100, 4000)
        home = had.index(min(had))
        had[home] += tokens
        turn.load.append(turn.request(at, home, turn.text(tokens), tokens, 192))


def burst(turn, _rng, _rate, _seconds, scale):
    """300 requests at once, 100 tokens in, 600 out."""
    turn.load = [turn.request(0, n % 2, turn.text(100), 100, 600) for n in range(round(300 * scale))]


class Scenario:
    """A load, the servers under it, and its size on one H200."""

    def __init__(self, load, second, rate, seconds):
        self.load, self.second, self.rate, self.seconds = load, second, rate, seconds


SCENARIOS = {
    # 80 % of the 27.8 a second that both did while both had work (docs/results.md, "One real GPU").
    "hetero": Scenario(hetero, "capped", 22, 16),
    # 70 % of the 75.8 and 72.3 a second that perfect placement carried (probe.jsonl.xz in benches/results/one-h200-peers).
    "prefix": Scenario(prefix, "equal", 53, 10),
    "half": Scenario(half, "half", 50.6, 10),
    # Prompts of 3,300 tokens, of which 570 and the answers are new: 17,000 prompt tokens a second, half of what the GPU computes.
    "chat": Scenario(chat, "equal", 24, 14),
    "mixed": Scenario(mixed, "equal", 12, 16),
    "burst": Scenario(burst, "equal", None, 0),
}


def turn(scenario, number, round_, rate, seconds, scale=1.0):
    """The requests of a turn and when its load begins. `scale` makes rehearsals smaller."""
    made = Turn(number)
    SCENARIOS[scenario].load(made, random.Random(f"{scenario} {round_}"), rate, seconds, scale)
    return made.trace()
