"""Rows of the project (docs/compare.md) from what a client kept of each request of a turn, and what the servers' metrics said before and after it."""

import json
import re
import urllib.request

GAUGES = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv_usage": "vllm:kv_cache_usage_perc",
    "preemptions": "vllm:num_preemptions_total",
    "prefix_queries": "vllm:prefix_cache_queries_total",
    "prefix_hits": "vllm:prefix_cache_hits_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generation_tokens": "vllm:generation_tokens_total",
    "steps": "vllm:iteration_tokens_total_count",
}


def sample(port):
    """One look at a server, a row but for its time; none where it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return None
    sums = {}
    for name, value in re.findall(r"^([a-z_:]+)(?:\{[^\n]*\})? (\S+)$", text, re.M):
        sums[name] = sums.get(name, 0.0) + float(value)
    blocks = re.search(r"^vllm:cache_config_info\{([^\n]*)\}", text, re.M)
    sizes = dict(re.findall(r'(block_size|num_gpu_blocks)="(\d+)"', blocks.group(1))) if blocks else {}
    row = {"backend": f"127.0.0.1:{port}"} | {key: sums.get(name) for key, name in GAUGES.items()}
    return row | {"kv_tokens": float(sizes["block_size"]) * float(sizes["num_gpu_blocks"]) if len(sizes) == 2 else None}


def micros(seconds):
    return round(seconds * 1e6)


def of_vllm(file, primers, backend):
    """Requests that `vllm bench serve` saved, without the primers, and their begins by its clock."""
    with open(file, encoding="utf-8") as saved:
        result = json.load(saved)
    records = []
    for n in range(primers, len(result["start_times"])):
        ttft, gaps, error = result["ttfts"][n], result["itls"][n], result["errors"][n]
        served = not error and result["output_lens"][n] > 0
        end = ttft + sum(gaps)
        how = "success" if served else "connect" if "ClientConnector" in error else "status" if not ttft else "truncated"
        record = {
            "backend": backend,
            "sent": result["start_times"][n],
            "first_event_us": micros(ttft) if ttft else None,
            "first_token_us": micros(ttft) if ttft else None,
            "last_event_us": micros(end) if served else None,
            "end_us": micros(end),
            "prompt_tokens": result["input_lens"][n],
            "output_tokens": result["output_lens"][n],
            "outcome": how,
            "status": 200 if served else None,
        }
        if not served:
            record["error"] = (error.strip().splitlines() or ["no token"])[-1][:200]
        records.append(record)
    return records


def of_forebay(file, primers, backend):
    """The same of rows that `forebay bench` wrote."""
    with open(file, encoding="utf-8") as rows:
        records = [json.loads(row) for row in rows if row.startswith('{"id"')]
    records = sorted(records, key=lambda one: one["id"])[primers:]
    for record in records:
        gaps = record.pop("gaps_us", [])
        record.setdefault("last_event_us", record["first_event_us"] and record["first_event_us"] + sum(gaps))
        record["sent"] = record.pop("sent_us") / 1e6
        record["backend"] = backend or record["backend"]
    return records


def lateness(records, planned):
    """How late one client sent each request, in microseconds: against the trace, from the request that was least late."""
    late = [record["sent"] - at for record, at in zip(records, planned)]
    return [micros(one - min(late)) for one in late]


def write(out, head, records, samples, end):
    """Appends a turn. `samples` are lists of looks before and after."""
    begin = min(record["sent"] for record in records)
    whole = max(micros(record["sent"] - begin) + record["end_us"] for record in records)
    lines = [{"run": head}]
    for at, looks in zip((0, whole), samples):
        lines += [{"sample": look | {"at_us": at}} for look in looks if look]
    for number, record in enumerate(sorted(records, key=lambda one: one["sent"])):
        record = dict(record)
        sent = micros(record.pop("sent") - begin)
        record.pop("id", None)
        lines.append({"id": number} | record | {"arm": head["arm"], "epoch": head["epoch"], "sent_us": sent})
    lines.append({"end": end})
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    with open(out, "a", encoding="utf-8") as rows:
        rows.write(text)


def read(file):
    """Turns of a file of rows: head, requests, samples, end. One without an end was cut off and is left out."""
    turns, turn = [], None
    with open(file, encoding="utf-8") as rows:
        for text in rows:
            if not text.endswith("\n"):
                break
            row = json.loads(text)
            if "run" in row:
                turn = {"head": row["run"], "records": [], "samples": [], "end": None}
            elif turn is None:
                continue
            elif "sample" in row:
                turn["samples"].append(row["sample"])
            elif "end" in row:
                turns.append(turn | {"end": row["end"]})
                turn = None
            else:
                turn["records"].append(row)
    return turns
