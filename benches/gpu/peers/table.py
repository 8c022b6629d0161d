"""Figures of peers.sh from its rows: a line a turn while it runs, and the tables of README and docs/results.md.

    table.py FILE.jsonl... (also .xz)           a table a scenario, contender by figure, medians over the turns
    table.py --readme FILE.jsonl...             one table, scenario by contender
"""

import lzma
import sys
import tempfile
from statistics import median

import rows

TTFT, TPOT = 500_000, 50_000
"""Limits of goodput, in microseconds."""


def at(values, percent):
    """The percentile as `vllm bench serve` has it; none of nothing."""
    values = sorted(values)
    if not values:
        return None
    place = (len(values) - 1) * percent / 100
    low = int(place)
    return values[low] + (values[min(low + 1, len(values) - 1)] - values[low]) * (place - low)


def tpot(record):
    tokens = record["output_tokens"] - 1
    return (record["last_event_us"] - record["first_event_us"]) / tokens if tokens > 0 else 0.0


def figures(turn):
    served = [record for record in turn["records"] if record["outcome"] == "success"]
    seconds = max(record["sent_us"] + record["end_us"] for record in turn["records"]) / 1e6
    ttfts, tpots = [record["first_event_us"] for record in served], [tpot(record) for record in served]
    good = sum(record["first_event_us"] <= TTFT and tpot(record) <= TPOT for record in served)
    tokens = sum(record["output_tokens"] for record in served)
    grown = {}
    for sample in turn["samples"]:
        for key in ("prefix_hits", "prefix_queries", "generation_tokens"):
            first, _ = grown.setdefault((sample["backend"], key), (sample[key], None))
            grown[(sample["backend"], key)] = (first, sample[key])
    difference = lambda backend, key: (lambda pair: (pair[1] or 0) - (pair[0] or 0))(grown.get((backend, key), (0, 0)))
    servers = turn["head"]["servers"]
    asked = sum(difference(one, "prefix_queries") for one in servers)
    made = [difference(one, "generation_tokens") for one in servers]
    ms = lambda values, percent: None if not values else at(values, percent) / 1000
    used = turn["end"].get("proxy_cpu_us")
    return {
        "requests/s": len(served) / seconds,
        "output tokens/s": tokens / seconds,
        "goodput": good / seconds,
        "TTFT P50": ms(ttfts, 50), "TTFT P90": ms(ttfts, 90), "TTFT P99": ms(ttfts, 99),
        "TPOT P50": ms(tpots, 50), "TPOT P99": ms(tpots, 99),
        "hit rate": sum(difference(one, "prefix_hits") for one in servers) / asked if asked else None,
        "share of the first": made[0] / sum(made) if sum(made) else None,
        "failures": len(turn["records"]) - len(served),
        "CPU µs a token": None if used is None or not tokens else used / tokens,
        "kernel": turn["end"]["proxy_kernel_us"] / used if used and "proxy_kernel_us" in turn["end"] else None,
        "switches a token": turn["end"]["proxy_switches"] / tokens if tokens and "proxy_switches" in turn["end"] else None,
    }


FORMS = {
    "requests/s": "{:.1f}", "output tokens/s": "{:.0f}", "goodput": "{:.1f}", "TTFT P50": "{:.0f}", "TTFT P90": "{:.0f}", "TTFT P99": "{:.0f}",
    "TPOT P50": "{:.1f}", "TPOT P99": "{:.1f}", "hit rate": "{:.2f}", "share of the first": "{:.2f}", "failures": "{:.0f}", "CPU µs a token": "{:.1f}",
    "kernel": "{:.2f}", "switches a token": "{:.2f}",
}


def form(name, value):
    return "" if value is None else FORMS[name].format(value)


def words(turn):
    made = figures(turn)
    return ", ".join(f"{name} {form(name, value)}" for name, value in made.items() if value is not None)


def opened(file):
    """The file itself, or what an .xz holds."""
    if not file.endswith(".xz"):
        return file
    plain = tempfile.NamedTemporaryFile(suffix=".jsonl", delete=False)
    with lzma.open(file) as packed, plain:
        plain.write(packed.read())
    return plain.name


def by_scenario(files):
    """Scenario -> contender -> figures of its turns."""
    found = {}
    for file in files:
        for turn in rows.read(opened(file)):
            arms = found.setdefault(turn["head"]["load"]["dataset"], {})
            arms.setdefault(turn["head"]["arm"], []).append((turn["head"], figures(turn)))
    last = lambda arm: arm == "placed"
    return {scenario: {arm: arms[arm] for arm in sorted(arms, key=last)} for scenario, arms in found.items()}


def middle(turns, name):
    values = [made[name] for _, made in turns if made[name] is not None]
    return median(values) if values else None


def tables(found):
    for scenario, arms in found.items():
        head = next(iter(arms.values()))[0][0]
        rate = head["load"]["offered"]
        rate = f"{rate['rate']:g} requests/s" if isinstance(rate, dict) else "all at once"
        print(f"\n{scenario}: {rate}, {head['load']['num_prompts']} requests a turn{', simulated servers' if head['simulated'] else ''}\n")
        print(f"| contender | starts | turns | {' | '.join(FORMS)} |")
        print("|---" * (3 + len(FORMS)) + "|")
        for arm, turns in arms.items():
            starts = len({head["start"] for head, _ in turns})
            print(f"| {arm} | {starts} | {len(turns)} | {' | '.join(form(name, middle(turns, name)) for name in FORMS)} |")


def readme(found):
    arms = list(dict.fromkeys(arm for each in found.values() for arm in each))
    print(f"| load | {' | '.join(arms)} |")
    print("|---" * (1 + len(arms)) + "|")
    for scenario, each in found.items():
        cells = []
        for arm in arms:
            turns = each.get(arm)
            cells.append("" if not turns else f"{middle(turns, 'goodput'):.1f}, {middle(turns, 'TTFT P99') / 1000:.2f} s")
        print(f"| `{scenario}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    files = [word for word in sys.argv[1:] if not word.startswith("--")]
    if not files:
        sys.exit(__doc__)
    (readme if "--readme" in sys.argv else tables)(by_scenario(files))
