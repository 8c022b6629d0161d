#!/usr/bin/env python3
"""A web page of another origin before Forebay, in a real browser, headless.

    check.py FOREBAY                     before a simulated server
    check.py FOREBAY URL MODEL           before the server at URL, which allows every origin (--allowed-origins '["*"]')
    check.py FOREBAY URL MODEL denied    before one that does not allow the page's origin (vLLM's default)

The page streams a chat with fetch, and reads a refusal. At defaults it may what the server allows; with `[cors]` what that says.
Python's standard library and Debian's chromium-driver. What it starts, it ends.
"""

import http.server
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading

from tab import FAILED, Tab, call, check, eventually, free_port

# What the page does: a streamed chat and a refusal, with a header that makes the browser ask first.
FETCH = """
const [base, model, done] = arguments;
(async () => {
  const ask = (name) => fetch(base + '/v1/chat/completions', {
    method: 'POST', headers: {'content-type': 'application/json', authorization: 'Bearer none'},
    body: JSON.stringify({model: name, stream: true, max_tokens: 300, messages: [{role: 'user', content: 'Hello'}]})});
  try {
    const list = await (await fetch(base + '/v1/models')).json();
    const answer = await ask(model), reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = '', pieces = 0;
    for (;;) { const {value, done} = await reader.read(); if (done) break; text += value; pieces += 1; }
    const refused = await ask('no-such-model');
    return {status: answer.status, id: answer.headers.get('x-request-id'), pieces, ended: text.trimEnd().endsWith('data: [DONE]'),
            models: list.data.length, refused: refused.status, why: (await refused.json()).error.message};
  } catch (error) { return {failed: String(error)}; }
})().then(done);
"""


class Page(http.server.BaseHTTPRequestHandler):
    """The page's own server: another origin than Forebay's."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>page</title>")

    def log_message(self, *_):
        pass


class Server:
    """A process that answers `/health` or `/ready` once it is there."""

    def __init__(self, command, ready):
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(ready, lambda: subprocess.run(["curl", "-sf", "-o", "/dev/null", ready]).returncode == 0)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def fetched(browser, binary, folder, server, model, cors):
    """What the page gets through a Forebay with these settings."""
    port, admin = free_port(), free_port()
    config = pathlib.Path(folder) / "forebay.toml"
    config.write_text(f'{cors}\n[[pools]]\nmodel = "{model}"\nunknown_models = "refuse"\nbackends = [{{ url = "{server}" }}]\n')
    listen = ["--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}"]
    forebay = Server([binary, "serve", "--config", config, *listen], f"http://127.0.0.1:{port}/ready")
    try:
        arguments = [f"http://127.0.0.1:{port}", model]
        return call(f"{browser.base}/execute/async", {"script": FETCH, "args": arguments})["value"]
    finally:
        forebay.stop()


def served(got):
    return got.get("status") == 200 and got["ended"] and got["pieces"] > 1 and got["models"] >= 1 and got["refused"] == 404


def main():
    binary, server, model, *denied = (sys.argv[1:] + ["", "sim"])[: max(3, len(sys.argv) - 1)]
    pages = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    origin = f"http://127.0.0.1:{pages.server_address[1]}"
    with tempfile.TemporaryDirectory() as folder:
        started = []
        try:
            if not server:
                port = free_port()
                server = f"http://127.0.0.1:{port}"
                sim = [binary, "sim", "--port", str(port), "--served-model-name", "sim", "--allowed-origins", "*"]
                started.append(Server(sim, f"{server}/health"))
            driver = free_port()
            started.append(Server([shutil.which("chromedriver"), f"--port={driver}"], f"http://127.0.0.1:{driver}/status"))
            browser = Tab(f"http://127.0.0.1:{driver}", timeouts={"script": 60000})
            browser.open(origin)
            got = fetched(browser, binary, folder, server, model, "")
            if denied:
                check("failed" in got, f"at defaults: what the server does not allow, the page cannot: {got}")
            else:
                check(served(got), f"at defaults: the page streams a chat and reads a refusal: {got}")
            got = fetched(browser, binary, folder, server, model, '[cors]\norigins = "off"')
            check("failed" in got, f"off: the page cannot: {got}")
            got = fetched(browser, binary, folder, server, model, f'[cors]\norigins = ["{origin}"]')
            check(served(got) and got["id"], f"in the list: the page can, whatever the server allows: {got}")
            got = fetched(browser, binary, folder, server, model, '[cors]\norigins = ["http://other.example"]')
            check("failed" in got, f"not in the list: the page cannot: {got}")
            browser.close()
        finally:
            for process in started:
                process.stop()
    pages.shutdown()
    print(f"{len(FAILED)} failed" if FAILED else "all passed")
    sys.exit(1 if FAILED else 0)


if __name__ == "__main__":
    main()
