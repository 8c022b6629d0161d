"""Sends traced requests through Forebay and reads the spans back from the collector's log.

    check.py FOREBAY ADMIN LOG

Each line says one fact and whether it holds. Exit 1 if one does not.
"""

import json
import re
import secrets
import sys
import time
import urllib.request

forebay, admin, log = sys.argv[1:]
failed = 0


def check(what, holds, shown=""):
    global failed
    failed += not holds
    print(f"{'ok  ' if holds else 'FAIL'}  {what}{': ' if shown != '' else ''}{shown}", flush=True)


def ask(traceparent, stream=True):
    body = {
        "model": "tiny",
        "stream": stream,
        "max_tokens": 16,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": "a-prompt that no span may have " * 20}],
    }
    headers = {"content-type": "application/json", "authorization": "Bearer sk-secret", "x-session-id": "a-session"}
    if traceparent:
        headers["traceparent"] = traceparent
    request = urllib.request.Request(f"{forebay}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def spans():
    """The spans in the log: name, ids and attributes."""
    found, one = [], None
    for line in open(log, errors="replace"):
        if re.match(r"\s*Span #", line):
            one = {"attributes": {}}
            found.append(one)
        elif one is not None:
            pair = re.match(r"\s*(?:->|-)?\s*([^:]+?)\s*: ?(.*)$", line)
            if not pair:
                continue
            name, value = pair.groups()
            kind = re.match(r"(?:Str|Int|Double|Bool|String)\((.*)\)$", value)
            if name in ("Trace ID", "Parent ID", "ID", "Name", "Kind"):
                one.setdefault(name, value)
            else:
                one["attributes"][name] = kind.group(1) if kind else value.strip('"')
    return found


def await_spans(wanted, limit=30):
    """The spans of these traces, once each has as many as it should."""
    until = time.monotonic() + limit
    while True:
        by_trace = {trace: [] for trace in wanted}
        for one in spans():
            if one.get("Trace ID") in by_trace:
                by_trace[one["Trace ID"]].append(one)
        if all(len(found) >= 4 for found in by_trace.values()) or time.monotonic() > until:
            return by_trace
        time.sleep(0.5)


def number(span, *names):
    for name in names:
        if name in span["attributes"]:
            return float(span["attributes"][name])
    raise KeyError(f"{names} in {span}")


# The first requests of a fresh server are slow, and one of each is enough.
for _ in range(4):
    ask(f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00")
sent = {}
for _ in range(20):
    trace, parent = secrets.token_hex(16), secrets.token_hex(8)
    sent[trace] = parent
    ask(f"00-{trace}-{parent}-01")
unsampled = secrets.token_hex(16)
ask(f"00-{unsampled}-{secrets.token_hex(8)}-00")

traces = await_spans(sent)
whole, earlier, differences = 0, 0, []
for trace, parent in sent.items():
    found = traces[trace]
    by_id = {one["ID"]: one for one in found}
    engine = [one for one in found if one["Name"] == "llm_request"]
    server = [one for one in found if one.get("Parent ID") == parent]
    if len(engine) != 1 or len(server) != 1:
        print("     ", trace, [(one["Name"], one["ID"], one.get("Parent ID")) for one in found])
        continue
    way, one = [], engine[0]
    while one is not None:
        way.append(one["Name"])
        one = by_id.get(one.get("Parent ID"))
    whole += way == ["llm_request", "POST", "chat tiny", "POST /v1/chat/completions"]
    theirs = number(engine[0], "gen_ai.latency.time_to_first_token")
    ours = number(server[0], "forebay.ttft")
    earlier += theirs <= ours
    differences.append((ours - theirs) * 1000)
check("parents lead from the client over Forebay to vLLM", whole == len(sent), f"{whole} of {len(sent)}")
check("vLLM's TTFT is no longer than Forebay's", earlier == len(sent), f"{earlier} of {len(sent)}")
if differences:
    differences.sort()
    print(f"      Forebay's TTFT less vLLM's: median {differences[len(differences) // 2]:.1f} ms, longest {differences[-1]:.1f} ms")
check("a trace that its caller does not sample has no spans", not any(one.get("Trace ID") == unsampled for one in spans()))
text = open(log, errors="replace").read()
told = [word for word in ("a-prompt", "sk-secret", "a-session") if word in text]
check("no prompt, no key and no session in the collector", not told, ", ".join(told))
metrics = urllib.request.urlopen(f"{admin}/metrics", timeout=10).read().decode()
counts = dict(re.findall(r'forebay_trace_spans_total\{result="(\w+)"\} (\d+)', metrics))
check("every span was sent", counts == {"sent": str(3 * len(sent)), "queue_full": "0", "failed": "0"}, counts)
sys.exit(failed > 0)
