"""Decisions a second of the endpoint picker on one core, by the bare protocol: no Envoy takes part, which costs more than the picker.

    python3 tests/epp/decisions.py FOREBAY [SECONDS]      FOREBAY: a release build; SECONDS: of each measurement, 8

The picker has one core, and this client and the backends have the others. The client speaks HTTP/2 in frames that are made beforehand and keeps
32 exchanges open: a head, a body of 1 KB or 400 KB, then the decision and the body back in pieces. Each prompt has a beginning of its
own. The backends are addresses of 127.0.0.0/8 where one simulated server answers scrapes and probes. `observe` is "none", `tls` "off".
On a machine that others use, the picker gets a part of its core. So the figure is the rate over that part: decisions in a second of CPU. The
rate itself, the part, and what the picker takes while nothing comes, follow. Loopback; one minute.
"""

import os
import select
import socket
import struct
import sys
import time

from stand import Stand, cpu, until

SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else 8
OPEN = 32
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
PIECE = 1 << 16  # bytes of a body in one message, about as Envoy sends them
WIDE = (1 << 31) - 1
AGAIN = 1 << 30  # bytes after which the connection's window is opened again


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def field(number, data):
    """A field of a message: a length and bytes, or a number."""
    if isinstance(data, int):
        return bytes((number << 3,)) + varint(data)
    return bytes((number << 3 | 2,)) + varint(len(data)) + data


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes((value,))


def message(data):
    return struct.pack(">BI", 0, len(data)) + data


def head(length):
    """The first message: a request's head, and the modes of the bodies, which are FULL_DUPLEX_STREAMED and STREAMED."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/v1/chat/completions",
        ":authority": "gateway",
        "content-type": "application/json",
        "content-length": str(length),
        "user-agent": "OpenAI/Python",
        "x-request-id": "00000000-0000-0000-0000-000000000000",
    }
    each = b"".join(field(1, field(1, name.encode()) + field(3, value.encode())) for name, value in headers.items())
    return message(field(2, field(1, each)) + field(11, field(1, 4) + field(2, 1) + field(3, 1)))


def literal(name, value):
    return b"\x00" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


CALL = b"".join(
    literal(*pair)
    for pair in (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/envoy.service.ext_proc.v3.ExternalProcessor/Process"),
        (":authority", "picker"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    )
)


class Prompts:
    """Messages of requests whose prompts have `size` bytes and a beginning of their own."""

    def __init__(self, size):
        words = ("river gate water mark gauge stone bridge " * (size // 40 + 1))[: size - 9]
        before, _, after = f'{{"model":"m","stream":true,"messages":[{{"role":"user","content":"@{words}"}}]}}'.partition("@")
        self.number, self.before = 0, before.encode()
        length = len(before) + 9 + len(after)
        first = PIECE - len(before) - 9
        self.head, rest = head(length), after.encode()
        self.first, rest = rest[:first], rest[first:]
        pieces = [rest[at : at + PIECE] for at in range(0, len(rest), PIECE)]
        self.is_one = not pieces
        self.rest = b"".join(self.piece(one, last=number == len(pieces) - 1) for number, one in enumerate(pieces))

    @staticmethod
    def piece(data, last):
        return message(field(4, field(1, data) + (field(2, 1) if last else b"")))

    def next(self):
        self.number += 1
        start = self.before + b"%08d " % self.number + self.first
        return self.head + self.piece(start, self.is_one) + self.rest


class Client:
    """One HTTP/2 connection without encryption."""

    def __init__(self, port, prompts):
        self.prompts = prompts
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.out, self.read = bytearray(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), bytearray()
        self.out += frame(SETTINGS, 0, 0, struct.pack(">HI", 4, WIDE)) + frame(WINDOW, 0, 0, struct.pack(">I", WIDE - 65535))
        self.window, self.initial, self.largest, self.taken = 65535, 65535, 16384, 0
        # What each exchange has yet to send, its window, and whether the decision came.
        self.exchanges, self.next, self.decided = {}, 1, 0

    def begin(self):
        self.out += frame(HEADERS, 4, self.next, CALL)
        self.exchanges[self.next] = [memoryview(self.prompts.next()), self.initial, False]
        self.next += 2

    def fill(self):
        """Writes what the windows allow."""
        for stream, exchange in self.exchanges.items():
            rest, window, _ = exchange
            while rest and window > 0 and self.window > 0 and len(self.out) < 1 << 20:
                size = min(len(rest), window, self.window, self.largest)
                self.out += frame(DATA, 0, stream, rest[:size])
                rest, window = rest[size:], window - size
                self.window -= size
            exchange[0], exchange[1] = rest, window

    def work(self):
        """One round of writing and reading."""
        self.fill()
        readable, writable, _ = select.select([self.socket], [self.socket] if self.out else [], [], 5)
        assert readable or writable, f"nothing for 5 s with {len(self.exchanges)} exchanges open"
        if writable:
            # Sockets block: no more than a buffer takes.
            sent = self.socket.send(memoryview(self.out)[: 1 << 17], socket.MSG_DONTWAIT)
            del self.out[:sent]
        if readable:
            data = self.socket.recv(1 << 20)
            assert data, "the picker closed the connection"
            self.read += data
            self.take()

    def take(self):
        at, read = 0, self.read
        while len(read) - at >= 9:
            length = int.from_bytes(read[at : at + 3], "big")
            if len(read) - at - 9 < length:
                break
            kind, flags, stream = struct.unpack_from(">BBI", read, at + 3)
            self.heard(kind, flags, stream, read, at + 9, length)
            at += 9 + length
        del read[:at]

    def heard(self, kind, flags, stream, read, at, length):
        exchange = self.exchanges.get(stream)
        if kind == DATA:
            self.taken += length
            if self.taken >= AGAIN:
                self.out += frame(WINDOW, 0, 0, struct.pack(">I", self.taken))
                self.taken = 0
            if exchange and not exchange[2]:
                exchange[2] = read.find(b"x-gateway-destination-endpoint", at, at + length) >= 0
        elif kind == WINDOW:
            grown = int.from_bytes(read[at : at + 4], "big")
            if stream == 0:
                self.window += grown
            elif exchange:
                exchange[1] += grown
        elif kind == SETTINGS and not flags & 1:
            for offset in range(at, at + length, 6):
                name, value = struct.unpack_from(">HI", read, offset)
                if name == 4:
                    for one in self.exchanges.values():
                        one[1] += value - self.initial
                    self.initial = value
                elif name == 5:
                    self.largest = value
            self.out += frame(SETTINGS, 1, 0, b"")
        elif kind == PING and not flags & 1:
            self.out += frame(PING, 1, 0, bytes(read[at : at + length]))
        elif kind == GOAWAY:
            raise AssertionError(f"the picker ended the connection: {bytes(read[at : at + length])}")
        if exchange and (kind == RESET or (kind in (DATA, HEADERS) and flags & 1)):
            assert exchange[2], f"an exchange ended without a decision: frame {kind}, {bytes(read[at : at + length])}"
            del self.exchanges[stream]
            self.decided += 1
            self.begin()


def measure(client, picker, seconds):
    """Decisions a second, and seconds of CPU a second."""
    before, decided, began = cpu(picker.process), client.decided, time.monotonic()
    while time.monotonic() < began + seconds:
        client.work()
    took = time.monotonic() - began
    return (client.decided - decided) / took, (cpu(picker.process) - before) / took


def idle(picker, seconds):
    before = cpu(picker.process)
    time.sleep(seconds)
    return (cpu(picker.process) - before) / seconds


def main():
    cores = sorted(os.sched_getaffinity(0))
    own = set(cores[:1])
    others = set(cores[1:]) or own
    with Stand(sys.argv[1]) as stand:
        server = stand.simulated(host="0.0.0.0", cores=others)
        os.sched_setaffinity(0, others)
        print("backends | prompt | decisions in a second of one core | µs of CPU each | decisions/s | share of the core | while idle")
        for backends in (16, 128):
            addresses = [f"127.0.1.{number}:{server.port}" for number in range(1, backends + 1)]
            pool = stand.pool("m", addresses)
            picker = stand.picker(pool, 'observe = "none"\ntls = "off"', cores=own)
            # Each has been scraped once. Their metrics are megabytes, so they are looked at seldom.
            until("every backend is known", lambda: picker.series("forebay_backend_kv_usage_ratio") == backends, 60, 1)
            time.sleep(1)
            resting = idle(picker, SECONDS)
            for name, size in (("1 KB", 1 << 10), ("400 KB", 400 << 10)):
                client = Client(picker.port, Prompts(size))
                for _ in range(OPEN):
                    client.begin()
                measure(client, picker, 1)
                rate, used = measure(client, picker, SECONDS)
                shown = f"{rate / used:,.0f} | {1e6 * used / rate:,.0f} | {rate:,.0f} | {100 * used:.0f} % | {100 * resting:.1f} %"
                print(f"{backends} | {name} | {shown}", flush=True)
                client.socket.close()
            picker.end()


main()
