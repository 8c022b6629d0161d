#!/usr/bin/env python3
"""The HTML reports of `forebay compare` in a real browser, headless: `report.py FOREBAY [SCREENSHOTS]`.

Makes reports of recorded experiments with two arms, with three and with five. Opens each at three widths, light and dark, and
says what is wrong: an overflow, a text too faint, a chart or a page without a title, a text of a chart that is cut or lies on
another one. Python's standard library, xz and Debian's chromium-driver.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "browser"))

from tab import CONTRAST, FAILED, Browser, call, check, eventually, free_port  # noqa: E402, found by the path above

WIDTHS = (360, 800, 1400)
ROWS = Path(__file__).resolve().parents[2] / "benches" / "results"
RECORDED = {"two-arms": "one-h200/h200-one-gpu", "three-arms": "one-h200/h200-routing", "five-arms": "two-h200/two-gpus"}

CHARTS = """
const found = { charts: 0, untitled: [], cut: [], crossed: [] };
for (const chart of document.querySelectorAll('figure > svg')) {
  found.charts += 1;
  const title = chart.querySelector('title');
  if (!title || !title.textContent.trim()) found.untitled.push(chart.outerHTML.slice(0, 80));
  const frame = chart.getBoundingClientRect();
  const texts = [...chart.querySelectorAll('text')].filter((text) => text.textContent.trim());
  const boxes = texts.map((text) => text.getBoundingClientRect());
  boxes.forEach((box, at) => {
    const name = `${title ? title.textContent : '?'}: ${texts[at].textContent}`;
    // The box of a text that stands upright has the line's own space beside the letters.
    const air = (texts[at].getAttribute('transform') || '').includes('rotate') ? 5 : 1;
    if (box.left < frame.left - air || box.right > frame.right + air || box.top < frame.top - 1 || box.bottom > frame.bottom + 1) found.cut.push(name);
    for (let other = at + 1; other < boxes.length; other += 1) {
      const across = Math.min(box.right, boxes[other].right) - Math.max(box.left, boxes[other].left);
      const down = Math.min(box.bottom, boxes[other].bottom) - Math.max(box.top, boxes[other].top);
      if (across > 1 && down > 3) found.crossed.push(`${name} on ${texts[other].textContent}`);
    }
  });
}
found.headings = [...document.querySelectorAll('h1, h2, h3, caption')].filter((at) => !at.textContent.trim()).length;
return found;
"""


def report_at_every_width(browser, path, pictures):
    name = path.stem
    browser.open(path.as_uri())
    title = browser.run("return document.title")
    check(title.strip() and title == browser.run("return document.querySelector('h1').textContent"), f"{name}: titled {title!r}")
    for scheme in ("light", "dark"):
        for width in WIDTHS:
            browser.look(width, scheme)
            what = f"{name}, {width} px, {scheme}"
            wide = browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
            check(wide <= 0, f"{what}: nothing wider than the page ({wide} px over)")
            faint = browser.run(CONTRAST)
            check(not faint, f"{what}: every text has a contrast of 4.5 {faint[:5]}")
            charts = browser.run(CHARTS)
            check(charts["charts"] > 0 and not charts["untitled"] and not charts["headings"], f"{what}: {charts['charts']} charts, all with a title")
            check(not charts["cut"], f"{what}: no text of a chart is cut {charts['cut'][:5]}")
            check(not charts["crossed"], f"{what}: no text of a chart lies on another {charts['crossed'][:5]}")
            if pictures:
                browser.picture(os.path.join(pictures, f"{name}-{scheme}-{width}.png"))


def made(forebay, folder):
    """The reports of the recorded rows, by name."""
    for name, rows in RECORDED.items():
        text = subprocess.run(["xz", "-dc", ROWS / f"{rows}.jsonl.xz"], check=True, capture_output=True).stdout
        report = Path(folder) / f"{name}.html"
        subprocess.run([forebay, "compare", "/dev/stdin", "--html", report], input=text, check=True, stdout=subprocess.DEVNULL)
        yield report


def main():
    forebay, pictures = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    if pictures:
        os.makedirs(pictures, exist_ok=True)
    port, browser = free_port(), None
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        base = f"http://127.0.0.1:{port}"
        eventually("chromedriver answers", lambda: call(f"{base}/status")["value"]["ready"])
        browser = Browser(base)
        with tempfile.TemporaryDirectory() as folder:
            for report in made(forebay, folder):
                report_at_every_width(browser, report, pictures)
    finally:
        if browser:
            browser.close()
        driver.terminate()
        driver.wait(10)
    print(f"{len(FAILED)} failed")
    sys.exit(1 if FAILED else 0)


main()
