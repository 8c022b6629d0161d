"""What step_profile.sh says: a load's figures with the CPU time beside it, or where py-spy found a process.

    step_profile.py RUN FROM TO ENGINE HTTP ENGINE HTTP    RUN.json, RUN-gpu.csv; times of day and seconds of CPU before and after
    step_profile.py STACKS...
"""

import collections
import json
import os
import sys

SAMPLES = 600
"""By step_profile.sh: 6 s, 100 a second."""
LOOPS = ("run_busy_loop", "uvloop/")
"""What is in every stack of the thread that does the work: the engine's loop, the HTTP process's event loop."""


def load(run, numbers):
    begin, end, engine, http, engine_after, http_after = numbers
    with open(f"{run}.json") as file:
        whole = json.load(file)["runs"][0]["parts"][0]
    # The client's own start and end are in the times of day, and nobody works then.
    took = whole["duration_s"]
    print(
        f"{os.path.basename(run)}: {whole['output_tokens_per_second']:,.0f} output tokens/s, "
        f"TPOT median {whole['tpot_ms']['p50']:.1f} ms, TTFT median {whole['ttft_ms']['p50']:.0f} ms; "
        f"CPU time in {took:.1f} s ({end - begin:.1f} s with the client's start): "
        f"engine {engine_after - engine:.1f} s, HTTP {http_after - http:.1f} s"
    )
    with open(f"{run}-gpu.csv") as file:
        print("  GPU in use, % every 0.5 s:", " ".join(line.strip() for line in file))


def stacks(path):
    samples = []
    with open(path) as file:
        for line in file:
            stack, count = line.rsplit(" ", 1)
            if any(loop in stack for loop in LOOPS):
                samples.append(([frame.rsplit(":", 1)[0] + ")" for frame in stack.split(";")], int(count)))
    total = sum(count for _, count in samples)
    within, itself = collections.Counter(), collections.Counter()
    for frames, count in samples:
        for frame in set(frames):
            within[frame] += count
        itself[frames[-1]] += count
    print(f"{os.path.basename(path)}: its loop was at work in {total} samples of {SAMPLES}")
    for name, counter, least in (("within", within, 0.03), ("itself", itself, 0.02)):
        for frame, count in counter.most_common(60):
            if least * total <= count < total:
                print(f"  {name} {count / total:6.1%} {frame}")


if sys.argv[1].endswith(".stacks"):
    for path in sys.argv[1:]:
        stacks(path)
else:
    load(sys.argv[1], [float(argument) for argument in sys.argv[2:]])
