"""What checks in a real browser share: a tab over chromedriver, calls of JSON over HTTP, and what failed."""

import base64
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


class Browser(Tab):
    """A tab that keeps what the page said, and may be of any width."""

    def __init__(self, driver):
        super().__init__(driver, "--hide-scrollbars", **{"goog:loggingPrefs": {"browser": "ALL"}})

    def cdp(self, command, **params):
        return call(f"{self.base}/goog/cdp/execute", {"cmd": command, "params": params})["value"]

    def run(self, script):
        return call(f"{self.base}/execute/sync", {"script": script, "args": []})["value"]

    def keys(self, *keys):
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        call(f"{self.base}/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def look(self, width, scheme):
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path):
        shot = self.cdp("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        with open(path, "wb") as file:
            file.write(base64.b64decode(shot["data"]))

    def said(self):
        return [entry["message"] for entry in call(f"{self.base}/se/log", {"type": "browser"})["value"]]


# Every text of some size against what is behind it: the ratio of WCAG, 4.5 at least.
CONTRAST = """
const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
const faint = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode, parent = node.parentElement;
  if (!node.textContent.trim() || !parent.checkVisibility() || parent.closest('noscript')) continue;
  let behind = parent, ground = [0, 0, 0, 0];
  for (; behind; behind = behind.parentElement) {
    ground = parse(getComputedStyle(behind).backgroundColor);
    if (ground.length < 4 || ground[3] > 0) break;
  }
  const [a, b] = [light(parse(getComputedStyle(parent)[parent instanceof SVGElement ? 'fill' : 'color'])), light(ground)].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) faint.push(node.textContent.trim().slice(0, 40) + ' ' + ratio.toFixed(2));
}
return faint;
"""
