#!/usr/bin/env python3
"""The live page in a real browser, headless: `check.py FOREBAY [SCREENSHOTS]`.

Starts three simulated servers, a proxy with two arms, a light load, chromedriver and chromium; opens the page at three widths,
light and dark, while all is well, while a server hangs and after one was killed; and says what is wrong: a console error, an
overflow, a figure that is not the one of /api/live, a control that the keyboard does not reach, a text too faint, an outage that
banner, title, table and events do not name. Python's standard library and Debian's chromium-driver. What it starts, it ends.
"""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "browser"))

from tab import CONTRAST, FAILED, Browser, call, check, eventually, free_port  # noqa: E402, found by the path above

TOKEN = "a-token-for-this-check"
WIDTHS = (360, 800, 1400)


class Load:
    """A few sessions that ask again and again."""

    def __init__(self, port):
        self.port, self.over = port, threading.Event()
        self.threads = [threading.Thread(target=self.session, args=(n,), daemon=True) for n in range(8)]
        for thread in self.threads:
            thread.start()

    def session(self, number):
        turn = 0
        while not self.over.is_set():
            turn += 1
            body = {"model": "sim", "stream": True, "max_tokens": 40, "messages": [{"role": "user", "content": "word " * (20 + 7 * number)}]}
            headers = {"content-type": "application/json", "x-session-id": f"{number}-{turn // 4}"}
            request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/chat/completions", json.dumps(body).encode(), headers)
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    answer.read()
            except (OSError, http.client.HTTPException):
                pass  # the proxy is killed meanwhile
            self.over.wait(0.3)

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join()


TABLE = """
const rows = {};
for (const row of document.querySelectorAll('.arms tbody tr'))
  rows[row.cells[0].textContent] = [...row.cells].slice(1).map((cell) => cell.querySelector('span').textContent);
return {rows, arms: [...document.querySelector('.arms').querySelectorAll('thead th')].slice(1).map((head) => head.childNodes[1].textContent)};
"""


# The last tick again, with queues put into it.
FULL = """
const before = state.tick;
const row = () => [...document.querySelectorAll('.arms tbody tr')].find((row) => row.cells[0].textContent === 'Output tokens/s per GPU');
const texts = (depth) => {
  state.tick = JSON.parse(JSON.stringify(before));
  state.tick.pools[0].arms.forEach((arm, a) => arm.backends.forEach((backend) => { backend.state = 'healthy'; backend.queue_depth = depth(a); }));
  show();
  return [...row().cells].slice(1).map((cell) => cell.querySelector('span').textContent);
};
const found = { quiet: texts(() => 0), one: texts((a) => a), unknown: texts((a) => a ? null : 3), all: texts(() => 3) };
found.notes = row().textContent;
state.tick = before;
show();
return found;
"""


def page_at_every_width(browser, pictures, what):
    for scheme in ("light", "dark"):
        for width in WIDTHS:
            browser.look(width, scheme)
            time.sleep(1.2)  # a tick in this layout, for the picture
            name = f"{what}, {width} px, {scheme}"
            wide = browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
            check(wide <= 0, f"{name}: nothing wider than the page ({wide} px over)")
            faint = browser.run(CONTRAST)
            check(not faint, f"{name}: every text has a contrast of 4.5 {faint[:5]}")
            if pictures:
                browser.picture(os.path.join(pictures, f"{what}-{scheme}-{width}.png"))
    browser.look(1400, "light")


def words(browser, selector):
    return browser.run(f"return document.querySelector('{selector}').innerText")


def title(browser):
    return browser.run("return document.title")


def first_backend(browser):
    return browser.run("return document.querySelector('table.backends tbody tr').innerText")


def pool_leads_with_a_sentence(browser):
    said = words(browser, ".lead")
    check(said.startswith("So far") and said.endswith("."), f"the pool leads with a sentence: {said}")
    check(not re.search(r"better|worse|best|win", said), "which does not judge")
    lead = browser.run("return [...document.querySelector('.arms').querySelectorAll('tbody tr')].map((row) => row.cells[0].textContent)")
    check(lead == ["TTFT p50", "TTFT p95", "TPOT p50", "TPOT p95", "Goodput/s per GPU", "Streams within the SLO"], f"then {lead}")
    check(not browser.run("return document.querySelector('details.rest').open"), "the rest is folded")
    check(browser.run("return document.getElementById('banner').hidden") and title(browser) == "Forebay", "and nothing is alarming")
    text = browser.run("return document.body.innerText")
    check(not re.search(r"\bb\d+\b", text), f"no backend is a bare number: {re.findall(r'.{20}.bb[0-9]+.b.{20}', text)[:2]}")
    check("prefill," in text and " decode" in text, "what is in flight says of what")
    browser.run("document.querySelector('#decisions summary').click()")
    check(words(browser, "#decisions details[open] .id").startswith("request "), "a decision shows its request's id")
    browser.run("document.querySelector('#decisions summary').click()")


def charts_follow_the_window(browser):
    seen = {}
    for window in ("1m", "5m", "15m", "start"):
        browser.run(f"document.querySelector('input[value=\"{window}\"]').click()")
        seen[window] = browser.run("return [...document.querySelectorAll('.axis')].map((axis) => axis.firstChild.textContent)")
    expected = {"1m": "1 min ago", "5m": "5 min ago", "15m": "15 min ago", "start": "15 min ago, the longest kept"}
    check(all(set(seen[key]) == {text} for key, text in expected.items()), f"charts say the chosen window: {seen}")
    names = browser.run("return [...document.querySelectorAll('figcaption')].map((at) => at.firstChild.textContent)")
    check(len(names) == 5 and "Requests/s" in names and "TPOT p50" in names and any("by outcome" in name for name in names), f"charts: {names}")
    browser.run("document.querySelector('input[value=\"5m\"]').click()")


def stopped_with_a_stream(admin, sim, name):
    """Stops the server while it has a stream past its first token, which stays with it: others are asked elsewhere."""
    def decoding():
        live = call(f"{admin}/api/live", headers={"authorization": f"Bearer {TOKEN}"})
        backends = (backend for pool in live["pools"] for arm in pool["arms"] for backend in arm["backends"])
        return sum(backend["decoding"] for backend in backends if backend["name"] == name)

    def stopped():
        if not decoding():
            return False
        sim.send_signal(signal.SIGSTOP)
        # The stream may have ended between the look and the stop.
        if decoding():
            return True
        sim.send_signal(signal.SIGCONT)
        return False

    eventually("the server is stopped in the middle of a stream", stopped, 60)


def a_hung_server_is_named_everywhere(browser, admin, sim, name, pictures):
    stopped_with_a_stream(admin, sim, name)
    try:
        said = eventually("the banner names the server and why", lambda: [text for text in [words(browser, "#banner")] if name in text and "no progress" in text], 30)
        check(re.search(r"\d+ requests? stuck on it", said[0]), f"and what is stuck: {said[0]}")
        check(re.match(rf"✕ {re.escape(name)} out: .*, \d+ stuck · Forebay", title(browser)), f"so does the title: {title(browser)}")
        check(name in first_backend(browser), "it stands first")
        page_at_every_width(browser, pictures, "hung")
    finally:
        sim.send_signal(signal.SIGCONT)
    eventually("the banner is gone when it is back", lambda: browser.run("return document.getElementById('banner').hidden"), 60)
    check(title(browser) == "Forebay", "so is the title's mark")
    told = words(browser, "#events ol")
    check(f"{name} ejected" in told and f"{name} takes requests" in told, f"events tell both: {told[:200]}")


def a_button_drains(browser, name):
    row = f"[...document.querySelectorAll('table.backends tbody tr')].find((row) => row.innerText.includes('{name}'))"
    press = f"{row}.querySelector('button.drain').click()"
    browser.run(press)
    time.sleep(1.2)
    check("drained" not in browser.run(f"return {row}.querySelector('td.state b').textContent"), "one press drains nothing")
    browser.run(press)
    eventually("the backend is drained", lambda: browser.run(f"return {row}.querySelector('td.state b').textContent") == "drained")
    check(browser.run("return document.getElementById('banner').hidden"), "a drain is no alarm")
    eventually("the button says so", lambda: browser.run(f"return {row}.querySelector('button.drain').textContent") == "Undrain", 10)
    browser.run(press)
    browser.run(press)
    eventually("and is back", lambda: browser.run(f"return {row}.querySelector('td.state b').textContent") == "healthy")
    check("the live page" in words(browser, "#events ol"), "events say who drained it")


def page_says_what_live_says(browser, admin):
    browser.run("document.querySelector('input[value=start]').click()")
    browser.run("document.getElementById('hold').click()")
    shown = browser.run(TABLE)
    live = call(f"{admin}/api/live", headers={"authorization": f"Bearer {TOKEN}"})
    arms = live["pools"][0]["arms"]
    check(shown["arms"] == [arm["name"] for arm in arms], "the arms are there, in their order")
    for place, arm in enumerate(arms):
        figures, text = arm["figures"]["start"], lambda row: shown["rows"][row][place]
        count = int(text("Requests ended").replace(",", ""))
        check(0 < count <= figures["requests"] <= count + 60, f"{arm['name']}: requests {count}, now {figures['requests']}")
        found = re.fullmatch(r"([\d.,]+) (ms|s)", text("TTFT p50"))
        value = float(found[1].replace(",", "")) / (1000 if found[2] == "ms" else 1)
        check(abs(value / figures["ttft"]["p50_seconds"] - 1) < 0.25, f"{arm['name']}: TTFT p50 {value} s, now {figures['ttft']['p50_seconds']} s")
    # Eight sessions are far from what the simulated servers can do.
    for row in ("Output tokens/s per GPU", "Goodput/s per GPU"):
        check(set(shown["rows"][row]) == {"follows the load"}, f"below full load {row} is no figure of an arm: {shown['rows'][row]}")
    browser.run("document.getElementById('hold').click()")


def follows_the_load_until_all_engines_queue(browser):
    """The page's own table, drawn from ticks that were made up: where every engine of every arm queues there is a figure, and no ratio."""
    shown = browser.run(FULL)
    check(shown["quiet"] == ["follows the load"] * 2, f"no engine queues: {shown['quiet']}")
    check(shown["one"] == ["follows the load"] * 2, f"one arm queues: {shown['one']}")
    check(shown["unknown"] == ["follows the load"] * 2, f"one queue is not known: {shown['unknown']}")
    check(all(re.fullmatch(r"[\d.,]+", text) for text in shown["all"]), f"all engines queue: {shown['all']}")
    check("×" not in shown["notes"], f"and there is no ratio: {shown['notes']}")


def keyboard_reaches_everything(browser):
    browser.run("document.activeElement.blur()")
    reached = set()
    for _ in range(48):
        browser.keys("\ue004")
        reached.add(browser.run("const at = document.activeElement; return at.name || at.id || at.getAttribute('aria-label') || at.tagName"))
    for control in ("window", "hold", "Arms of sim", "Backends of sim", "Events", "SUMMARY"):
        check(control in reached, f"the tab key reaches {control}")


def stays_where_it_is(browser):
    where = "return [...document.querySelectorAll('h2, h3, .arms tr, .backends tr')].map((at) => Math.round(at.getBoundingClientRect().top + scrollY))"
    before = browser.run(where)
    time.sleep(3)
    check(browser.run(where) == before, "nothing moves from one tick to another")


def says_who_is_out_and_why(browser, sim, name, pictures):
    sim.kill()
    sim.wait()
    states = "return [...document.querySelectorAll('td.state')].map((cell) => [cell.dataset.state, cell.querySelector('small').textContent])"
    out = eventually("a backend that is gone is out", lambda: [why for state, why in browser.run(states) if state in ("ejected", "probing")])
    check("·" in out[0], f"and why: {out[0]}")
    said = words(browser, "#banner")
    check(name in said and "no progress" not in said, f"the banner names it, and not as one that hangs: {said}")
    check(title(browser).startswith(f"✕ {name} out: "), f"and the title: {title(browser)}")
    page_at_every_width(browser, pictures, "killed")


def lost_and_found(browser, proxy, start):
    proxy.kill()
    proxy.wait()
    said = eventually("the page says that it lost the stream", lambda: "trying again" in browser.run("return document.getElementById('status').textContent"))
    check(said, "a lost stream is told")
    again = start()
    eventually("the page is back", lambda: browser.run("return document.getElementById('status').textContent") == "live", 40)
    check(True, "and found again")
    return again


def main():
    forebay = os.path.abspath(sys.argv[1])
    pictures = sys.argv[2] if len(sys.argv) > 2 else None
    if pictures:
        os.makedirs(pictures, exist_ok=True)
    if not shutil.which("chromedriver"):
        raise SystemExit("chromedriver is not installed (Debian's chromium-driver)")
    ports = [free_port() for _ in range(6)]
    sims, (data, admin_port, driver_port) = ports[:3], ports[3:]
    folder = tempfile.mkdtemp(prefix="forebay-page-")
    config = os.path.join(folder, "forebay.toml")
    with open(os.path.join(folder, "token"), "w", encoding="utf-8") as file:
        file.write(TOKEN)
    os.chmod(os.path.join(folder, "token"), 0o600)
    with open(config, "w", encoding="utf-8") as file:
        file.write(
            f'[listen]\naddress = "127.0.0.1:{data}"\n[admin]\naddress = "127.0.0.1:{admin_port}"\ntoken_file = "token"\n'
            f'[[pools]]\nmodel = "sim"\nsession = {{ header = "x-session-id" }}\n'
            f'[[pools.arms]]\nname = "tp2"\ngpus = 2\nbackends = [{{ url = "http://127.0.0.1:{sims[0]}" }}]\n'
            f'[[pools.arms]]\nname = "tp1x2"\ngpus = 2\nbackends = [{{ url = "http://127.0.0.1:{sims[1]}" }}, {{ url = "http://127.0.0.1:{sims[2]}" }}]\n'
        )
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started, load, browser = [], None, None

    def serve():
        child = subprocess.Popen([forebay, "serve", "--config", config, "--threads", "1"], **quiet)
        started.append(child)
        return child

    try:
        for port, profile in zip(sims, ("rtx4090-tp2-qwen7b", "rtx4090-tp1-qwen7b", "rtx4090-tp1-qwen7b")):
            started.append(subprocess.Popen([forebay, "sim", "--profile", profile, "--port", str(port), "--served-model-name", "sim"], **quiet))
        proxy = serve()
        started.append(subprocess.Popen(["chromedriver", f"--port={driver_port}"], **quiet))
        admin, driver = f"http://127.0.0.1:{admin_port}", f"http://127.0.0.1:{driver_port}"
        eventually("chromedriver answers", lambda: call(f"{driver}/status")["value"]["ready"])
        bearer = {"authorization": f"Bearer {TOKEN}"}
        eventually("the proxy answers", lambda: call(f"{admin}/api/live", headers=bearer))
        browser = Browser(driver)
        browser.look(1400, "light")
        browser.open(f"{admin}/dashboard")
        eventually("the page asks for its token", lambda: browser.run("return !document.getElementById('ask').hidden"))
        check(not browser.run("return document.querySelector('.arms') !== null"), "without the token nothing is shown")
        browser.said()  # the refusal, which the console tells of by itself
        for key in (TOKEN, "\ue007"):
            browser.keys(*key)
        eventually("the page is live", lambda: browser.run("return document.getElementById('status').textContent") == "live")
        check("No request yet" in browser.run("return document.querySelector('.empty').textContent"), "an idle proxy says what to do")
        if pictures:
            browser.picture(os.path.join(pictures, "empty-1400.png"))
        load = Load(data)
        eventually("decisions are told", lambda: browser.run("return document.querySelectorAll('#decisions li[data-number]').length") >= 10)
        eventually("requests are counted", lambda: browser.run(TABLE)["rows"]["TTFT p99"][1] != "–")
        time.sleep(float(os.environ.get("FOREBAY_PAGE_WARM", "12")))
        page_says_what_live_says(browser, admin)
        follows_the_load_until_all_engines_queue(browser)
        pool_leads_with_a_sentence(browser)
        charts_follow_the_window(browser)
        page_at_every_width(browser, pictures, "healthy")
        stays_where_it_is(browser)
        keyboard_reaches_everything(browser)
        a_button_drains(browser, f"127.0.0.1:{sims[1]}")
        a_hung_server_is_named_everywhere(browser, admin, started[1], f"127.0.0.1:{sims[1]}", pictures)
        says_who_is_out_and_why(browser, started[2], f"127.0.0.1:{sims[2]}", pictures)
        told = eventually("outcomes are counted by name", lambda: re.findall(r"(\w+) \d+", words(browser, ".outcomes").partition(": ")[2]))
        live = call(f"{admin}/api/live", headers=bearer)
        known = {outcome for arm in live["pools"][0]["arms"] for outcome in arm["figures"]["5m"]["outcomes"]}
        check(set(told) <= known, f"as /api/live counts them: {told} of {known}")
        errors = browser.said()
        check(not errors, f"no word on the console {errors[:3]}")
        proxy = lost_and_found(browser, proxy, serve)
    finally:
        if load:
            load.stop()
        if browser:
            browser.close()
        for child in reversed(started):
            if child.poll() is None:
                child.terminate()
        for child in started:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(FAILED)} failed")
    sys.exit(1 if FAILED else 0)


main()
