"""Forebay before real vLLM servers: what a client sees, and what the metrics and the engines say meanwhile.

    tests/real_vllm/run.sh VENV [FOREBAY]    starts everything, runs all parts, stops everything
    check.py main      two vLLM servers behind Forebay
    check.py queue     one vLLM server with --max-num-seqs 1 behind Forebay
    check.py affinity  two vLLM servers with --max-num-seqs 1 behind Forebay

Environment: FOREBAY_URL, FOREBAY_ADMIN_URL, FOREBAY_VLLM_URLS (comma separated, asked directly), FOREBAY_MODEL (tiny),
FOREBAY_SIZE (ci or full). FOREBAY_DIRECT=1 leaves out what only a Forebay can answer, so that the checks themselves can be
tried with FOREBAY_URL set to a vLLM server. One line a check; the last line is `N passed, N failed`; exit 1 on a failure.

The model has random weights: its greedy text is noise, but the same noise for the same prompt on every instance.
"""

import concurrent.futures
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import openai

from wire import Answer, eventually, get, post, run_checks, samples, stream, total

URL = os.environ["FOREBAY_URL"].rstrip("/")
ADMIN = os.environ.get("FOREBAY_ADMIN_URL", "").rstrip("/")
VLLM = [url.rstrip("/") for url in os.environ["FOREBAY_VLLM_URLS"].split(",")]
MODEL = os.environ.get("FOREBAY_MODEL", "tiny")
FULL = os.environ.get("FOREBAY_SIZE", "ci") == "full"
DIRECT = os.environ.get("FOREBAY_DIRECT") == "1"
ABORTS = 50 if FULL else 8  # of each kind
PROMPTS = 12 if FULL else 4
SETTLE = 10.0  # seconds in which counters must reach what they come to
LONG = 1900  # tokens: seconds of work, so that an abort is seen before the end

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
CHECKS = {"main": [], "queue": [], "affinity": []}


def check(part="main", forebay=False):
    """Registers a check; `forebay`: it means nothing without one."""

    def register(function):
        if not (forebay and DIRECT):
            CHECKS[part].append(function)
        return function

    return register


def client(base=URL):
    return openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0, timeout=120)


def prompt(number):
    return f"Question {number}: why does a queue grow when {number * 7} requests arrive at once?"


def chat_body(text, tokens=24, **more):
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0} | more


def metric(name, **labels):
    return total(get(ADMIN, "/metrics"), name, **labels)


def engines(name, **labels):
    return sum(total(get(url, "/metrics"), name, **labels) for url in VLLM)


def at_work():
    return engines("vllm:num_requests_running") + engines("vllm:num_requests_waiting")


def equal(got, wanted, what):
    assert got == wanted, f"{what}: got {got!r}, wanted {wanted!r}"


# ---- text ----------------------------------------------------------------------------------------------------------


def chat_text(api, number, tokens=24):
    answer = api.chat.completions.create(**chat_body(prompt(number), tokens))
    return answer.choices[0].message.content


def chat_stream_text(api, number, tokens=24, **more):
    events = api.chat.completions.create(**chat_body(prompt(number), tokens), stream=True, **more)
    return "".join(choice.delta.content or "" for event in events for choice in event.choices)


def completion_text(api, number, tokens=24):
    return api.completions.create(model=MODEL, prompt=prompt(number), max_tokens=tokens, temperature=0).choices[0].text


def completion_stream_text(api, number, tokens=24, **more):
    events = api.completions.create(
        model=MODEL, prompt=prompt(number), max_tokens=tokens, temperature=0, stream=True, **more
    )
    return "".join(choice.text for event in events for choice in event.choices)


def response_text(api, number, tokens=24):
    return api.responses.create(model=MODEL, input=prompt(number), max_output_tokens=tokens, temperature=0).output_text


def response_stream_text(api, number, tokens=24):
    text, last = "", None
    for event in api.responses.create(
        model=MODEL, input=prompt(number), max_output_tokens=tokens, temperature=0, stream=True
    ):
        last = event.type
        if event.type == "response.output_text.delta":
            text += event.delta
    assert last in ("response.completed", "response.incomplete"), f"the stream ended with {last}"
    return text


KINDS = [
    (chat_text, chat_text),
    (chat_stream_text, chat_text),
    (completion_text, completion_text),
    (completion_stream_text, completion_text),
    (response_text, response_text),
    (response_stream_text, response_text),
]


def text_check(through, direct):
    def run():
        for number in range(PROMPTS):
            equal(through(client(), number), direct(client(VLLM[0]), number), f"prompt {number}")
        return f"{PROMPTS} prompts"

    run.__name__ = f"{through.__name__}_equals_the_direct_answer"
    check()(run)


for pair in KINDS:
    text_check(*pair)


@check()
def twenty_at_once_get_their_own_answers():
    jobs = [(KINDS[n % len(KINDS)], n) for n in range(20)]
    wanted = [direct(client(VLLM[0]), number) for (_, direct), number in jobs]
    before = [total(get(url, "/metrics"), "vllm:request_success_total") for url in VLLM]
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        got = list(pool.map(lambda job: job[0][0](client(), job[1]), jobs))
    wrong = [n for n in range(20) if got[n] != wanted[n]]
    assert not wrong, f"requests {wrong} differ; the first: {got[wrong[0]]!r}, direct {wanted[wrong[0]]!r}"
    after = [total(get(url, "/metrics"), "vllm:request_success_total") for url in VLLM]
    share = [int(now - then) for now, then in zip(after, before)]
    if not DIRECT:
        equal(sum(share), 20, "requests that the engines finished")
        assert all(share), f"a backend got nothing: {share}"
    return f"by backend {share}"


@check()
def messages_equal_the_direct_answer():
    body = {"model": MODEL, "max_tokens": 16, "temperature": 0, "messages": [{"role": "user", "content": prompt(3)}]}
    text = [json.loads(post(base, "/v1/messages", body)[1])["content"] for base in (URL, VLLM[0])]
    equal(text[0], text[1], "content")
    _, events = stream(URL, "/v1/messages", body | {"stream": True})
    names = [name for _, name, _ in events]
    equal((names[0], names[-1]), ("message_start", "message_stop"), "first and last event")


# ---- usage ---------------------------------------------------------------------------------------------------------


def parsed(events):
    """The JSON of a stream's events; the last must be [DONE]."""
    equal(events[-1][2], "[DONE]", "the last event")
    return [json.loads(data) for _, _, data in events[:-1]]


def plain(event):
    """An event without what differs from request to request."""
    return {key: value for key, value in event.items() if key not in ("id", "created")}


def usage_hidden(path, body, options):
    """A stream whose client did not ask for usage sees none, and every other event as vLLM sends it."""
    tokens = 20
    body = body | {"stream": True, "ignore_eos": True} | options
    before = metric("forebay_output_tokens_total", source="usage") if not DIRECT else 0
    _, events = stream(URL, path, body)
    seen = parsed(events)
    assert not any(event.get("usage") for event in seen), f"a usage event reached the client with {options}"
    assert all(event["choices"] for event in seen), f"an event without choices reached the client with {options}"
    _, direct = stream(VLLM[0], path, body)
    text = [[(c.get("delta") or {}).get("content") or c.get("text") for e in s for c in e["choices"]] for s in (seen, parsed(direct))]
    equal("".join(filter(None, text[0])), "".join(filter(None, text[1])), "text")
    equal(set(seen[0]), set(parsed(direct)[0]), "members of the first event")
    if not DIRECT:

        def counted():
            now = metric("forebay_output_tokens_total", source="usage") - before
            return now == tokens, f"{now:g} of {tokens} tokens"

        eventually(f"output tokens counted from usage with {options}", counted, SETTLE)


HIDDEN = [
    {},
    {"stream_options": None},
    {"stream_options": {"include_usage": False}},
    {"stream_options": {"include_usage": False, "continuous_usage_stats": True}},
]


@check()
def chat_without_include_usage_sees_no_usage_and_is_counted():
    for options in HIDDEN:
        usage_hidden(CHAT, chat_body(prompt(1), 20), options)


@check()
def completions_without_include_usage_see_no_usage_and_are_counted():
    for options in HIDDEN:
        usage_hidden(COMPLETIONS, {"model": MODEL, "prompt": prompt(1), "max_tokens": 20, "temperature": 0}, options)


@check()
def include_usage_is_answered_once_and_as_the_engine_says():
    for path, body in (
        (CHAT, chat_body(prompt(2), 20)),
        (COMPLETIONS, {"model": MODEL, "prompt": prompt(2), "max_tokens": 20, "temperature": 0}),
    ):
        body = body | {"stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}
        through, direct = (parsed(stream(base, path, body)[1]) for base in (URL, VLLM[0]))
        with_usage = [event for event in through if event.get("usage")]
        equal(len(with_usage), 1, f"usage events on {path}")
        equal(with_usage[0]["choices"], [], "its choices")
        equal(with_usage[0]["usage"], direct[-1]["usage"], "usage")
        equal(through[-1], with_usage[0], "the last event before [DONE]")
    api = client().chat.completions.create(
        **chat_body(prompt(2), 20), stream=True, stream_options={"include_usage": True}, extra_body={"ignore_eos": True}
    )
    equal([event.usage.completion_tokens for event in api if event.usage], [20], "usage by openai-python")


@check()
def continuous_usage_stats_pass_through():
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = parsed(stream(URL, CHAT, chat_body(prompt(2), 12, stream=True, stream_options=options))[1])
    assert all(event.get("usage") for event in events), "an event without usage"


@check(forebay=True)
def responses_and_unary_tokens_are_counted_from_usage():
    for path, body, tokens in (
        (RESPONSES, {"model": MODEL, "input": prompt(1), "max_output_tokens": 12, "temperature": 0, "stream": True}, 12),
        (CHAT, chat_body(prompt(1), 14, ignore_eos=True), 14),
    ):
        before = metric("forebay_output_tokens_total", source="usage")
        _, text = post(URL, path, body)
        assert "usage" in text, text[-300:]
        eventually(
            f"tokens of {path}",
            lambda: ((n := metric("forebay_output_tokens_total", source="usage") - before) == tokens, f"{n:g} of {tokens}"),
            SETTLE,
        )


@check(forebay=True)
def prompt_tokens_are_counted_as_the_engine_counts_them():
    before = metric("forebay_prompt_tokens_total")
    _, text = post(VLLM[0], CHAT, chat_body(prompt(5), 4))
    wanted = json.loads(text)["usage"]["prompt_tokens"]
    stream(URL, CHAT, chat_body(prompt(5), 4, stream=True))
    eventually(
        "prompt tokens",
        lambda: ((n := metric("forebay_prompt_tokens_total") - before) == wanted, f"{n:g} of {wanted}"),
        SETTLE,
    )


# ---- heads and errors ----------------------------------------------------------------------------------------------


@check(forebay=True)
def response_headers_say_who_answered():
    for more in ({}, {"stream": True}):
        answer, _ = post(URL, CHAT, chat_body(prompt(1), 4, **more), {"x-request-id": "my-own-id-7"})
        equal(answer.header("x-request-id"), "my-own-id-7", "x-request-id")
        assert answer.header("x-forebay-backend"), "no x-forebay-backend"
        equal(answer.header("x-forebay-arm"), "default", "x-forebay-arm")
        equal(answer.header("x-forebay-attempts"), "1", "x-forebay-attempts")
        answer, _ = post(URL, CHAT, chat_body(prompt(1), 4, **more))
        made = answer.header("x-request-id")
        assert made and len(made) >= 8, f"x-request-id made: {made!r}"
    return f"made {made}"


@check()
def unknown_model_is_an_openai_error():
    try:
        client().chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "x"}])
        raise AssertionError("no error")
    except openai.NotFoundError as error:
        assert "no-such-model" in error.message, error.message
        assert isinstance(error.body, dict) and {"message", "type", "code"} <= set(error.body), error.body
        # The only pool tries what nobody lists, so this is vLLM's own answer.
        equal(error.body["type"], "NotFoundError", "type")
        if not DIRECT:
            assert error.response.headers["x-request-id"]
    answer, text = post(URL, CHAT, chat_body("x") | {"model": "no-such-model", "stream": True})
    equal(answer.status, 404, "status of the streamed one")
    assert "error" in json.loads(text)


@check()
def the_engines_own_errors_pass_through():
    bad = [chat_body("x", -1), chat_body("x", 4, stream_options={"include_usage": True}), chat_body("x", 999999)]
    for body in bad + [body | {"stream": True} for body in bad[::2]]:
        answers = [post(base, CHAT, body) for base in (URL, VLLM[0])]
        equal(answers[0][0].status, answers[1][0].status, "status")
        equal(answers[0][0].status, 400, "status")
        equal(answers[0][1], answers[1][1], "body")
    try:
        client().chat.completions.create(**chat_body("x", -1))
        raise AssertionError("no error")
    except openai.BadRequestError:
        pass


@check()
def models_are_listed():
    assert MODEL in [model.id for model in client().models.list()]


@check()
def tokenize_passes():
    equal(*(json.loads(post(base, "/tokenize", {"model": MODEL, "prompt": "Hello"})[1]) for base in (URL, VLLM[0])), "tokens")


@check(forebay=True)
def forebay_keeps_the_rest_to_itself():
    answer, text = post(URL, "/pause", {})
    equal(answer.status, 404, "POST /pause")
    assert json.loads(text)["error"]["type"].startswith("forebay_"), text
    fleet = json.loads(get(ADMIN, "/api/fleet"))
    for url in VLLM:
        assert url.split("//")[1] in json.dumps(fleet), f"{url} is not in /api/fleet"
    get(URL, "/health")


# ---- clients that leave --------------------------------------------------------------------------------------------


def idle():
    """Whether the engines have nothing to do, and still nothing 0.2 s later: a request may be on its way to them."""
    n = at_work()
    if n == 0:
        time.sleep(0.2)
        n = at_work()
    return n == 0, f"{n:g} requests"


def leave_all(open_one, least=ABORTS):
    """Opens ABORTS long requests, each left by its client, and waits until engines and Forebay know of nothing.

    `least`: how many of them Forebay must have counted; one left before it was parsed was never a request."""
    eventually("engines idle before", idle, 60)
    finished = engines("vllm:request_success_total")
    aborted = metric("forebay_aborts_total") if not DIRECT else 0
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(open_one, range(ABORTS)))
    took = eventually("engines at work after all clients left", idle, SETTLE)
    equal(engines("vllm:request_success_total") - finished, 0.0, "requests that an engine finished all the same")
    if not DIRECT:
        eventually("forebay_in_flight", lambda: ((n := metric("forebay_in_flight")) == 0, f"{n:g}"), SETTLE)

        def counted():
            n = metric("forebay_aborts_total") - aborted
            return least <= n <= ABORTS, f"{n:g} of {ABORTS}"

        eventually("forebay_aborts_total", counted, SETTLE)
    return f"{ABORTS} left, engines idle {took:.2f} s later"


def long_body(number, **more):
    return chat_body(prompt(number), LONG, ignore_eos=True, **more)


@check()
def client_leaves_before_the_first_token():
    chance = random.Random(7)

    def one(number):
        # A long prompt, new each time, so that there is a prefill to leave.
        text = " ".join(str(chance.randrange(10**6)) for _ in range(10))
        answer = Answer(URL, CHAT, chat_body(f"{number} {text}", LONG - 300, ignore_eos=True, stream=True))
        time.sleep(chance.uniform(0.001, 0.006))
        answer.leave(reset=number % 2 == 1)

    return leave_all(one, least=ABORTS // 2)


@check()
def client_leaves_mid_stream():
    def one(number):
        answer = Answer(URL, CHAT, long_body(number, stream=True))
        events = answer.events()
        for _ in range(3 + number % 5):
            next(events)
        answer.leave(reset=number % 2 == 1)

    return leave_all(one)


@check()
def client_leaves_a_unary_request():
    def one(number):
        answer = Answer(URL, CHAT, long_body(number))
        time.sleep(0.1 + 0.02 * (number % 5))
        answer.leave(reset=number % 2 == 1)

    return leave_all(one)


@check()
def openai_python_leaves_mid_stream():
    def one(number):
        api = client()
        answer = api.chat.completions.create(
            **chat_body(prompt(number), LONG), stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(answer))
        answer.close()
        api.close()

    return leave_all(one)


# ---- metrics -------------------------------------------------------------------------------------------------------


@check(forebay=True)
def every_stream_has_one_ttft_and_unary_requests_none():
    before = get(ADMIN, "/metrics")
    for _ in range(3):
        stream(URL, CHAT, chat_body(prompt(1), 8, stream=True))
        post(URL, CHAT, chat_body(prompt(1), 8))

    def counts():
        now = get(ADMIN, "/metrics")
        names = ("forebay_ttft_seconds_count", "forebay_e2e_seconds_count", "forebay_requests_total")
        grown = [total(now, name) - total(before, name) for name in names]
        return grown == [3, 6, 6], f"{names} grew by {grown}, not [3, 6, 6]"

    eventually("counts", counts, SETTLE)


@check(forebay=True)
def metrics_carry_pool_arm_and_both_backends():
    text = get(ADMIN, "/metrics")
    found = [labels for labels, _ in samples(text, "forebay_ttft_seconds_count") if labels.get("backend") != "none"]
    equal(len({labels["backend"] for labels in found}), len(VLLM), "backends in forebay_ttft_seconds")
    equal({labels["pool"] for labels in found}, {MODEL}, "pools")
    equal({labels["arm"] for labels in found}, {"default"}, "arms")
    return f"{len(text)} bytes, {text.count(chr(10))} lines"


@check(forebay=True)
def promtool_finds_nothing():
    if not shutil.which("promtool"):
        return "SKIPPED: promtool is not installed (Debian: prometheus)"
    run = subprocess.run(
        ["promtool", "check", "metrics"], input=get(ADMIN, "/metrics"), text=True, capture_output=True, timeout=60
    )
    equal((run.returncode, run.stdout + run.stderr), (0, ""), "promtool check metrics")


@check(forebay=True)
def a_real_prometheus_scrapes_it():
    if not shutil.which("prometheus"):
        return "SKIPPED: prometheus is not installed (Debian: prometheus)"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/prometheus.yml", "w") as config:
            config.write(
                "global: {scrape_interval: 1s}\nscrape_configs:\n  - job_name: forebay\n    static_configs:\n"
                f"      - targets: ['{ADMIN.split('//')[1]}']\n"
            )
        server = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address=127.0.0.1:{port}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:

            def up():
                try:
                    targets = json.loads(get(base, "/api/v1/targets"))["data"]["activeTargets"]
                except (OSError, AssertionError) as error:
                    return False, repr(error)
                return bool(targets) and targets[0]["health"] == "up", json.dumps(targets)[:400]

            eventually("the target", up, 60)

            # A target is up a moment before what it said can be asked for.
            def stored():
                result = json.loads(get(base, "/api/v1/query?query=forebay_build_info"))["data"]["result"]
                found.extend(result)
                return len(result) == 1, json.dumps(result)

            found = []
            eventually("one series of forebay_build_info", stored, 30)
            return f"version {found[0]['metric'].get('version')}"
        finally:
            server.terminate()
            server.wait(30)


# ---- a queue inside vLLM -------------------------------------------------------------------------------------------


HOLDERS = 4  # about 3 s of work each


class Busy:
    """Keeps the one sequence of a `--max-num-seqs 1` server taken until it is left."""

    def __enter__(self):
        self.holders = [Answer(VLLM[0], CHAT, long_body(n, stream=True)) for n in range(HOLDERS)]
        next(self.holders[0].events())
        return self

    def end(self):
        for holder in self.holders:
            holder.leave()

    def __exit__(self, *_):
        self.end()
        eventually("engine idle", idle, 60)


def queued(base, path, body, seconds):
    """Streams while the engine is busy for `seconds` more; the Answer and the time of its first token's event."""
    with Busy() as busy, concurrent.futures.ThreadPoolExecutor(1) as pool:
        job = pool.submit(stream, base, path, body)
        time.sleep(seconds)
        assert not job.done(), "the request did not queue"
        busy.end()
        answer, events = job.result(60)
    skip = ("response.created", "response.in_progress")
    return answer, next(at for at, name, _ in events if name not in skip)


@check("queue")
def a_direct_request_has_its_head_long_before_its_token():
    answer, first = queued(VLLM[0], CHAT, chat_body(prompt(1), 4, stream=True), 2.5)
    assert answer.head_after < 1.0 < 2.4 < first, f"head {answer.head_after:.3f} s, first token {first:.3f} s"
    return f"head after {answer.head_after * 1000:.0f} ms, first token after {first:.2f} s"


def ttft_counts_the_queue(path, body):
    before = get(ADMIN, "/metrics")
    answer, first = queued(URL, path, body, 2.7)
    assert first >= 2.5, f"first token after {first:.2f} s"
    seen = {}

    def counted():
        now = get(ADMIN, "/metrics")
        for name, more in (("count", {}), ("sum", {}), ("bucket", {"le": "1"}), ("bucket", {"le": "2.5"})):
            key = f"forebay_ttft_seconds_{name}"
            seen[name + more.get("le", "")] = total(now, key, **more) - total(before, key, **more)
        seen["le"] = bool(samples(now, "forebay_ttft_seconds_bucket", le="2.5"))
        return seen["count"] == 1, seen

    eventually("forebay_ttft_seconds_count", counted, SETTLE)
    assert seen["le"], "no bucket le=2.5"
    equal((seen["bucket1"], seen["bucket2.5"]), (0, 0), "observations at or below 1 s and 2.5 s")
    assert abs(seen["sum"] - first) < 0.1 + 0.02 * first, f"forebay says {seen['sum']:.3f} s, the client {first:.3f} s"
    return f"head after {answer.head_after:.2f} s, first token {first:.3f} s, forebay_ttft_seconds {seen['sum']:.3f} s"


@check("queue", forebay=True)
def chat_ttft_counts_the_wait_in_vllms_queue():
    return ttft_counts_the_queue(CHAT, chat_body(prompt(1), 4, stream=True))


@check("queue", forebay=True)
def completions_ttft_counts_the_wait_in_vllms_queue():
    body = {"model": MODEL, "prompt": prompt(1), "max_tokens": 4, "temperature": 0, "stream": True}
    return ttft_counts_the_queue(COMPLETIONS, body)


@check("queue", forebay=True)
def responses_ttft_counts_the_wait_in_vllms_queue():
    body = {"model": MODEL, "input": prompt(1), "max_output_tokens": 4, "temperature": 0, "stream": True}
    return ttft_counts_the_queue(RESPONSES, body)


@check("queue")
def clients_that_leave_while_queued_leave_vllms_queue():
    with Busy():
        for kind in ({"stream": True}, {}):
            asked = [Answer(URL, CHAT, long_body(n, **kind)) for n in range(ABORTS)]
            eventually("requests waiting", lambda: ((n := at_work()) > ABORTS, f"{n:g} at work"), SETTLE)
            for number, answer in enumerate(asked):
                answer.leave(reset=number % 2 == 1)
            took = eventually("after they left", lambda: ((n := at_work()) <= HOLDERS, f"{n:g} at work"), 2.0)
            if not DIRECT:
                eventually("forebay_in_flight", lambda: ((n := metric("forebay_in_flight")) == 0, f"{n:g}"), SETTLE)
    return f"2 × {ABORTS} left, out of vLLM's queue {took:.2f} s later"


# ---- prefix caches -------------------------------------------------------------------------------------------------


def of_backend(authority):
    """A backend as /api/fleet shows it."""
    fleet = json.loads(get(ADMIN, "/api/fleet"))
    return next(b for p in fleet["pools"] for a in p["arms"] for b in a["backends"] if authority in b["url"])


def shared_prefix():
    """A text that is at least 2,000 tokens to the engine."""
    text, tokens = "", 0
    while tokens < 2000:
        text += "The river authority opens its gates when the water stands above the third mark of the gauge. " * 20
        tokens = json.loads(post(VLLM[0], "/tokenize", {"model": MODEL, "prompt": text})[1])["count"]
    return text, tokens


def ask_after(text, number, tokens=4):
    """Streams a prompt that begins with `text`; where it was served."""
    answer, _ = stream(URL, CHAT, chat_body(f"{text} Question {number}: {prompt(number)}", tokens, stream=True))
    return answer.header("x-forebay-backend")


@check("affinity", forebay=True)
def a_shared_prefix_goes_back_to_the_backend_that_has_it_and_leaves_it_when_loaded():
    def hits(url):
        return total(get(url, "/metrics"), "vllm:prefix_cache_hits_total")

    text, tokens = shared_prefix()
    home = ask_after(text, 0)
    (home_url,), others = ([url for url in VLLM if (home in url) == own] for own in (True, False))
    before, elsewhere = hits(home_url), sum(map(hits, others))
    equal({ask_after(text, number) for number in range(1, 7)}, {home}, "backends of the prefix")
    found = hits(home_url) - before
    assert found >= 6 * (tokens - 64), f"{found:g} tokens found in the cache, of 6 times {tokens}"
    equal(sum(map(hits, others)), elsewhere, "hits elsewhere")
    assert metric("forebay_expected_cached_tokens_total", backend=home) > 0, "nothing was expected in the cache"

    # Others' requests, straight to its engine: one runs, the rest wait.
    load = [Answer(home_url, CHAT, long_body(number, stream=True)) for number in range(HOLDERS)]
    try:
        next(load[0].events())

        def queue_is_seen():
            seen = of_backend(home)["load"]["foreign_waiting"]
            return seen >= HOLDERS - 1, f"{seen:g} waiting"

        eventually("the home's queue in /api/fleet", queue_is_seen, SETTLE)
        away = ask_after(text, 7)
        assert away != home, "it went into the queue"
    finally:
        for answer in load:
            answer.leave()
    eventually("engines idle", idle, 60)
    return f"{tokens} tokens, {found:g} of {6 * tokens} found again; loaded, it went to {away}"


def main(part):
    for url in {URL, *VLLM}:  # the first requests of a fresh engine are slow
        post(url, CHAT, chat_body("warm", 4)), post(url, RESPONSES, {"model": MODEL, "input": "x", "max_output_tokens": 4})
    return run_checks(CHECKS[part])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "main"))
