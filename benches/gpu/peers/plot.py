"""The distribution of TTFT by load and contender, over all turns, from the rows of peers.sh. Needs matplotlib.

    plot.py PNG FILE.jsonl... (also .xz)
"""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import rows
import table

target, *files = sys.argv[1:]
figure, panels = plt.subplots(2, -(-len(files) // 2), figsize=(4 * -(-len(files) // 2), 6.4), squeeze=False)
names = {}
for panel, file in zip(panels.flat, files):
    times = {}
    for turn in rows.read(table.opened(file)):
        name = turn["head"]["load"]["dataset"]
        times.setdefault(turn["head"]["arm"], []).extend(one["first_event_us"] / 1000 for one in turn["records"] if one["first_event_us"])
    for arm in sorted(times, key=lambda arm: arm == "placed"):
        values = sorted(times[arm])
        shares = [(n + 1) / len(values) for n in range(len(values))]
        style = {"color": "gray", "linestyle": "--"} if arm == "placed" else {}
        (names[arm],) = panel.plot(values, shares, label=arm, **style)
    panel.axvline(500, color="lightgray", linewidth=1, zorder=0)
    panel.set(xscale="log", xlim=(20, 20_000), xlabel="TTFT, ms", ylabel="share of requests", title=name)
figure.legend(names.values(), names.keys(), loc="lower center", ncols=4, frameon=False)
figure.tight_layout(rect=(0, 0.02 + 0.03 * -(-len(names) // 4), 1, 1))
figure.savefig(target, dpi=100)
