"""What checks in a real browser share: a tab over chromedriver, calls of JSON over HTTP, and what failed."""

import json
import socket
import time
import urllib.error
import urllib.request

FAILED = []


def check(holds, what):
    print(("ok     " if holds else "FAILED ") + what, flush=True)
    if not holds:
        FAILED.append(what)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def call(url, body=None, method=None, headers=(), limit=60):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **dict(headers)}, method=method)
    with urllib.request.urlopen(request, timeout=limit) as answer:
        return json.loads(answer.read())


def eventually(what, look, limit=30):
    end = time.monotonic() + limit
    while True:
        try:
            found = look()
            if found:
                return found
        except (OSError, urllib.error.URLError):
            pass
        if time.monotonic() > end:
            raise SystemExit(f"not within {limit} s: {what}")
        time.sleep(0.1)


class Tab:
    """A tab of a headless Chromium, with capabilities of its own beside those that every one has."""

    def __init__(self, driver, *arguments, **capabilities):
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *arguments]}
        always = {"browserName": "chrome", "goog:chromeOptions": options, **capabilities}
        session = call(f"{driver}/session", {"capabilities": {"alwaysMatch": always}})["value"]["sessionId"]
        self.base = f"{driver}/session/{session}"

    def open(self, url):
        call(f"{self.base}/url", {"url": url})

    def close(self):
        call(self.base, method="DELETE")
