"""What openai-python sees of real vLLM servers behind a real Envoy with Forebay as its endpoint picker, beside what the servers say
when they are asked directly; and what the end of a picker costs.

    tests/epp/run.sh VENV [FOREBAY]               starts the servers, and this
    check.py FOREBAY ONE OTHER EMBEDDING [NAME]   ip:port of two servers of the model `tiny` and of one of `vectors`; NAME: a part of
                                                  the names of the checks to run

One line a check; the last line is `N passed, N failed`; exit 1 on a failure. The model has random weights: its greedy text is noise,
but the same noise for the same prompt on every server.
"""

import concurrent.futures
import functools
import signal
import sys
import threading
import time

import openai
from stand import Stand
from wire import Answer, eventually, get, run_checks, total

FOREBAY, *ADDRESSES = sys.argv[1:5]
NAMED = sys.argv[5] if len(sys.argv) > 5 else ""
TINY, VECTORS = ADDRESSES[:2], ADDRESSES[2]
ENGINES = [f"http://{address}" for address in ADDRESSES]
OBSERVES = ("first_token", "stream", "none")
LONG = 1900  # tokens: seconds of work
CLIENTS = 4  # that send one request after the other while a picker ends
LEAVES = 10  # clients of each kind
POOLS = Stand.pool("tiny", TINY) + Stand.pool("vectors", [VECTORS])
DRAIN = '[listen]\ndrain = { ready_delay = "3s", limit = "20s" }\n[replicas]\ncount = 2'
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"], "additionalProperties": False},
        },
    }
]
CHOSEN = {"type": "function", "function": {"name": "weather"}}


def client(base):
    return openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0, timeout=120)


def prompt(number):
    return f"Question {number}: why does a queue grow when {number * 7} requests arrive at once?"


def chat(text, tokens=24, **more):
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0} | more


def running():
    return sum(total(get(engine, "/metrics"), "vllm:num_requests_running") for engine in ENGINES[:2])


def equal(got, wanted, what):
    assert got == wanted, f"{what}: got {str(got)[:400]!r}, wanted {str(wanted)[:400]!r}"


# ---- the same as directly: each returns what is compared -----------------------------------------------------------


def chat_text(api, number):
    return api.chat.completions.create(**chat(prompt(number))).choices[0].message.content


def chat_stream_text(api, number):
    events = api.chat.completions.create(**chat(prompt(number)), stream=True)
    return "".join(choice.delta.content or "" for event in events for choice in event.choices)


def chat_stream_usage(api, number):
    asked = api.chat.completions.create(**chat(prompt(number)), stream=True, stream_options={"include_usage": True})
    return [event.usage.total_tokens for event in asked if event.usage]


def completion_text(api, number):
    return api.completions.create(model="tiny", prompt=prompt(number), max_tokens=24, temperature=0).choices[0].text


def completion_stream_text(api, number):
    events = api.completions.create(model="tiny", prompt=prompt(number), max_tokens=24, temperature=0, stream=True)
    return "".join(choice.text for event in events for choice in event.choices)


def tool_call(api, number):
    answer = api.chat.completions.create(**chat(prompt(number), 100), tools=TOOLS, tool_choice=CHOSEN)
    return [(call.function.name, call.function.arguments) for call in answer.choices[0].message.tool_calls]


def tool_call_stream(api, number):
    events = api.chat.completions.create(**chat(prompt(number), 100), tools=TOOLS, tool_choice=CHOSEN, stream=True)
    calls = [call for event in events for choice in event.choices for call in choice.delta.tool_calls or []]
    return "".join(call.function.name or "" for call in calls), "".join(call.function.arguments or "" for call in calls)


def a_small_prompt_in_a_body_of_4_mb(api, number):
    # vLLM ignores what it does not know.
    answer = api.chat.completions.create(**chat(prompt(number)), extra_body={"padding": "x" * (4 << 20)})
    return answer.choices[0].message.content


SAME = [
    chat_text,
    chat_stream_text,
    chat_stream_usage,
    completion_text,
    completion_stream_text,
    tool_call,
    tool_call_stream,
    a_small_prompt_in_a_body_of_4_mb,
]


def is_the_same(ask, front):
    wanted = ask(client(ENGINES[0]), 1)
    assert wanted, "vLLM itself answers nothing"
    for number in (1, 2):
        equal(ask(client(front), number), ask(client(ENGINES[0]), number), f"prompt {number}")
    return str(wanted)[:60]


def embeddings(front):
    def ask(base):
        return client(base).embeddings.create(model="vectors", input=[prompt(1), prompt(2)]).data

    through, direct = ask(front), ask(ENGINES[2])
    equal([len(one.embedding) for one in through], [len(one.embedding) for one in direct], "sizes")
    far = max(abs(a - b) for one, two in zip(through, direct) for a, b in zip(one.embedding, two.embedding))
    assert far < 1e-3, f"the vectors differ by {far}"
    return f"two of {len(through[0].embedding)} numbers"


def refusal(base, **more):
    """The class, the status and the words of an answer that is an error."""
    try:
        client(base).chat.completions.create(**(chat("hello") | more))
    except openai.APIStatusError as error:
        return type(error).__name__, error.status_code, error.body["message"]
    raise AssertionError("it was served")


def refused_as_directly(front):
    kinds = {
        "a temperature below 0": {"temperature": -1},
        "more tokens than the model takes": {"max_tokens": 10**6},
        "a prompt of 4 MB": {"messages": [{"role": "user", "content": "word " * (4 << 20 >> 2 >> 1) + "x" * (1 << 20)}]},
        "the same as a stream": {"temperature": -1, "stream": True},
    }
    for what, more in kinds.items():
        wanted = refusal(ENGINES[0], **more)
        equal(wanted[1], 400, what)
        equal(refusal(front, **more), wanted, what)
    return f"{len(kinds)} kinds"


def an_unknown_model(front):
    wanted, got = refusal(ENGINES[0], model="nobody"), refusal(front, model="nobody")
    equal(got[:2], wanted[:2], "class and status")
    equal(got[:2], ("NotFoundError", 404), "class and status")
    return got[2]


def left(open_one):
    """The longest time from a client that leaves until no engine runs anything."""
    slowest = 0
    for number in range(LEAVES):
        leave = open_one(number)
        eventually("a request runs", lambda: ((n := running()) == 1, n), 10)
        leave()
        slowest = max(slowest, eventually("running after the client left", lambda: ((n := running()) == 0, n), 1.0))
    return slowest


def a_client_that_leaves(front):
    def stream(number):
        api = client(front)
        answer = api.chat.completions.create(**chat(prompt(number), LONG), stream=True, extra_body={"ignore_eos": True})
        next(iter(answer))
        return lambda: (answer.close(), api.close())

    def unary(number):
        answer = Answer(front, "/v1/chat/completions", chat(prompt(number), LONG, ignore_eos=True))
        return lambda: answer.leave(reset=number % 2 == 1)

    streams, others = left(stream), left(unary)
    return f"engines idle {streams:.2f} s later at most, after {LEAVES} streams; {others:.2f} s after {LEAVES} unary requests"


# ---- the end of a picker -------------------------------------------------------------------------------------------


class Load:
    """Clients that send one request after the other, and what failed. A context manager."""

    def __init__(self, front):
        self.front, self.failed, self.sent, self.over = front, [], 0, threading.Event()

    def one_client(self):
        api, number = client(self.front), 0
        while not self.over.is_set():
            number += 1
            try:
                events = list(api.chat.completions.create(**chat(prompt(number), 8), stream=True))
                if not any(choice.finish_reason for event in events for choice in event.choices):
                    self.failed.append("an answer without an end")
            except openai.OpenAIError as error:
                answer = getattr(error, "response", None)
                self.failed.append(f"{type(error).__name__} {error} {answer.text if answer else ''}")
            self.sent += 1

    def __enter__(self):
        self.clients = [threading.Thread(target=self.one_client) for _ in range(CLIENTS)]
        for one in self.clients:
            one.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for one in self.clients:
            one.join()


def picked_more(picker, by, what):
    before = picker.picked()
    eventually(what, lambda: ((n := picker.picked()) >= before + by, f"{n - before:g} of {by}"), 60)


def pair(stand, observe):
    pickers = [stand.picker(POOLS, f'observe = "{observe}"', DRAIN) for _ in range(2)]
    return pickers, stand.envoy(pickers, ADDRESSES)


def sigterm_under_load(observe):
    with Stand(FOREBAY) as stand:
        (one, other), envoy = pair(stand, observe)
        with Load(envoy.url) as load:
            for each in (one, other):
                picked_more(each, 20, "both pick")
            equal(one.end(signal.SIGTERM, 60), 0, "the exit status of the picker")
            picked_more(other, 20, "the other one picks on")
        equal(load.failed, [], f"of {load.sent} requests")
        return f"0 of {load.sent} requests failed"


def long_stream(front, begun, number):
    """When its first and its last event came, and what ended it."""
    events, first = client(front).chat.completions.create(
        **chat(prompt(number), LONG), stream=True, extra_body={"ignore_eos": True}
    ), None
    try:
        for event in events:
            last = time.monotonic()
            if first is None:
                first = last
                begun.release()
            end = next((choice.finish_reason for choice in event.choices if choice.finish_reason), None)
    except openai.OpenAIError as error:
        end = type(error).__name__
    return first, last, end


def a_kill(observe):
    with Stand(FOREBAY) as stand, concurrent.futures.ThreadPoolExecutor(8) as pool:
        (one, other), envoy = pair(stand, observe)
        with Load(envoy.url) as load:
            for each in (one, other):
                picked_more(each, 20, "both pick")
            begun = threading.Semaphore(0)
            streams = [pool.submit(long_stream, envoy.url, begun, number) for number in range(4)]
            for _ in streams:
                assert begun.acquire(timeout=30), "a long stream has a first token"
            # Its first token is the last thing that a picker sees of a stream, and it leaves with it.
            killed = time.monotonic()
            one.end(signal.SIGKILL)
            ended = [stream.result() for stream in streams]
            picked_more(other, 20, "the other one picks on")
        whole = sum(end == "length" for *_, end in ended)
        # With "stream", those that the dead picker watched end with it.
        if observe != "stream":
            assert all(last > killed for _, last, _ in ended), "each stream outlived the picker"
            equal(whole, len(ended), "streams that went on to their end")
        assert len(load.failed) <= CLIENTS, f"{len(load.failed)} of {load.sent} failed: {load.failed[:5]}"
        return f"{len(load.failed)} of {load.sent} requests failed, {whole} of {len(ended)} streams went on to their end"


def named(name, check, *arguments):
    function = functools.partial(check, *arguments)
    function.__name__ = name
    return function


def main():
    checks = []
    # Where this fails, the machine is too busy to say anything of the same behind Envoy.
    checks.append(named("directly: a_client_that_leaves", a_client_that_leaves, ENGINES[0]))
    with Stand(FOREBAY) as stand:
        for observe in OBSERVES:
            picker = stand.picker(POOLS, f'observe = "{observe}"')
            front = stand.envoy([picker], ADDRESSES).url
            checks += [named(f"{observe}: {ask.__name__}", is_the_same, ask, front) for ask in SAME]
            for check in (embeddings, refused_as_directly, an_unknown_model, a_client_that_leaves):
                checks.append(named(f"{observe}: {check.__name__}", check, front))
        for observe in OBSERVES:
            checks.append(named(f"{observe}: SIGTERM of one of two pickers under load", sigterm_under_load, observe))
            checks.append(named(f"{observe}: kill -9 of one of two pickers under load", a_kill, observe))
        sys.exit(run_checks([check for check in checks if NAMED in check.__name__]))


main()
