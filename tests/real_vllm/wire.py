"""Under the checks: raw HTTP/1.1 requests, server-sent events with the time of each, Prometheus texts, and how checks are run.

Standard library only, so that nothing which a client library hides or repairs can hide here."""

import http.client
import json
import re
import socket
import struct
import time
import traceback
import urllib.parse

LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Answer:
    """One HTTP exchange whose body is read piece by piece."""

    def __init__(self, base, path, body=None, headers=None, method=None, timeout=120):
        at = urllib.parse.urlsplit(base)
        self.connection = http.client.HTTPConnection(at.hostname, at.port, timeout=timeout)
        raw = None if body is None else json.dumps(body).encode()
        head = {"content-type": "application/json"} if raw is not None else {}
        self.sent = time.monotonic()
        self.connection.request(method or ("GET" if raw is None else "POST"), path, raw, head | (headers or {}))
        self.socket = self.connection.sock
        self.head = None

    def wait(self):
        """Waits for the head."""
        if self.head is None:
            self.head = self.connection.getresponse()
            self.head_after = time.monotonic() - self.sent
        return self

    @property
    def status(self):
        return self.wait().head.status

    def header(self, name):
        return self.wait().head.getheader(name)

    def text(self):
        return self.wait().head.read().decode()

    def json(self):
        return json.loads(self.text())

    def events(self):
        """Yields (seconds since sending, event name or None, data text) of every event; comments are skipped."""
        self.wait()
        name, data = None, []
        while line := self.head.readline():
            line = line.decode().rstrip("\r\n")
            if line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
            elif line.startswith("event:"):
                name = line[6:].strip()
            elif not line and data:
                yield time.monotonic() - self.sent, name, "\n".join(data)
                name, data = None, []

    def leave(self, reset=False):
        """Closes the connection at once, by FIN or by RST."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self.head is not None:
            self.head.close()
        self.connection.close()
        self.socket.close()


def get(base, path, timeout=30):
    """The text of a GET that must be a 200."""
    answer = Answer(base, path, timeout=timeout)
    text = answer.text()
    answer.leave()
    if answer.status != 200:
        raise AssertionError(f"GET {path}: {answer.status} {text[:200]}")
    return text


def post(base, path, body, headers=None):
    """The finished Answer of a unary POST and its text."""
    answer = Answer(base, path, body, headers)
    text = answer.text()
    answer.leave()
    return answer, text


def stream(base, path, body, headers=None):
    """The finished Answer of a streamed POST and the list of its events."""
    answer = Answer(base, path, body, headers)
    if answer.status != 200:
        raise AssertionError(f"POST {path}: {answer.status} {answer.text()[:300]}")
    events = list(answer.events())
    answer.leave()
    return answer, events


def samples(text, name, **labels):
    """(labels, value) of each sample of that name which carries all those labels."""
    found = []
    for line in text.splitlines():
        match = LINE.match(line)
        if match and match[1] == name:
            own = dict(LABEL.findall(match[2] or ""))
            if all(own.get(key) == value for key, value in labels.items()):
                found.append((own, float(match[3])))
    return found


def total(text, name, **labels):
    """Their sum; 0 where there is none."""
    return sum(value for _, value in samples(text, name, **labels))


def eventually(what, probe, deadline):
    """Waits until `probe()` returns (True, shown); fails with what it showed last. Returns the seconds it took."""
    started = time.monotonic()
    while True:
        held, shown = probe()
        if held:
            return time.monotonic() - started
        if time.monotonic() - started > deadline:
            raise AssertionError(f"{what}: still {shown} after {deadline} s")
        time.sleep(0.05)


def run_checks(functions):
    """Runs them in order, a line each with what it returns; the last line is `N passed, N failed`. The exit status."""
    passed = failed = 0
    for function in functions:
        started = time.monotonic()
        try:
            note, word = function() or "", "ok"
            passed += 1
        except Exception as error:  # whatever it is, it is this check's failure, and the others still run
            note, word = str(error) if isinstance(error, AssertionError) else traceback.format_exc(), "FAILED"
            failed += 1
        print(f"{word:6} {function.__name__} ({time.monotonic() - started:.1f} s) {note}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0
