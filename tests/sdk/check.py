"""What the official clients make of a stream that was cut: an exception, never a short answer taken for a whole one. And of what is
refused: the class of its exception, how often they repeat a call that engines die of, and that one over a limit succeeds when it is
repeated.

    check.py FOREBAY FIXTURES [NODE_MODULES]

FOREBAY is the binary, FIXTURES the folder of a real vLLM's recorded answers. A scripted backend plays them, cut in every way, behind
a real Forebay; openai-python and the Anthropic SDK for Python read what comes, and, with NODE_MODULES, openai-node and Anthropic's
SDK for TypeScript too (check.mjs). Prints a table; exit 1 if a client took a cut answer for a whole one, or a whole one for a cut.
"""

import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import anthropic
import openai

HERE = pathlib.Path(__file__).parent
APIS = ("chat", "completion", "responses", "messages")
# What is played, whether it is a stream that is asked for, and whether the client must see it fail.
PLAYS = {
    "whole": (True, False),
    "no-end-mark": (True, True),
    "closed": (True, True),
    "reset": (True, True),
    "silent": (True, True),
    "engine-died": (True, True),
    "late-whole": (True, False),
    "late-failed": (True, True),
    "late-400": (True, True),
    "unary-whole": (False, False),
    "unary-cut": (False, True),
    "unary-large-cut": (False, True),
}
# What is called (`calls`), and what must come of it: the class of the exception, or what was returned.
CALLS = {
    "model-with-slash": ("org/tiny",),
    "unknown-model": ("NotFoundError",),
    "wrong-method": ("APIStatusError", "APIError"),
    "deadly-prompt": ("InternalServerError",),
    "deadly-stream": ("InternalServerError",),
}
# Engines that one call may meet which kills them.
MOST_DEATHS = 2
ERROR = {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "param": None, "code": 500}


def recorded(fixtures, name):
    """The head and the unframed body of a recorded answer."""
    head, _, rest = (fixtures / f"{name}.response").read_bytes().partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head:
        return head, rest
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return head, body


class Backend:
    """A vLLM that plays what the header `x-play` says."""

    def __init__(self, fixtures):
        self.streams, self.documents, self.kills = {}, {}, 0
        for api in APIS:
            _, body = recorded(fixtures, f"{api}-stream")
            self.streams[api] = [event + b"\n\n" for event in body.split(b"\n\n") if event.strip()]
            self.documents[api] = json.loads(recorded(fixtures, api)[1])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = connection.makefile("rb")
        try:
            while line := reader.readline():
                path = line.split(b" ")[1].decode()
                headers = {}
                while (header := reader.readline()) not in (b"\r\n", b""):
                    name, _, value = header.decode().partition(":")
                    headers[name.lower()] = value.strip()
                reader.read(int(headers.get("content-length", 0)))
                if not self.play(connection, path, headers.get("x-play", "")):
                    return
        except OSError:
            pass
        finally:
            reader.close()
            connection.close()

    def play(self, connection, path, play):
        """Answers one request; false where that ends the connection."""
        api = next((api for api in APIS if api in path), None)
        if api is None:
            listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in ("tiny", "org/tiny")]} if path == "/v1/models" else {}
            return document(connection, 200, json.dumps(listed).encode())
        if play == "kill":
            self.kills += 1
            return False
        events = self.streams[api]
        half = events[: max(len(events) // 2, 3)]
        if play.startswith("unary"):
            return self.unary(connection, api, play)
        if play.startswith("late"):
            time.sleep(0.4)
        if play == "late-failed":
            return False
        if play == "late-400":
            error = {"message": "no", "type": "BadRequestError", "param": None, "code": 400}
            shape = {"type": "error", "error": error} if api == "messages" else {"error": error}
            return document(connection, 400, json.dumps(shape).encode())
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head)
        if play == "engine-died":
            half = half + [self.death(api)] + ([b"data: [DONE]\n\n"] if api in ("chat", "completion") else [])
        for event in events if play in ("whole", "late-whole") else half:
            connection.sendall(b"%x\r\n%s\r\n" % (len(event), event))
        if play == "closed":
            return False
        if play == "reset":
            time.sleep(0.05)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if play == "silent":
            connection.recv(1)
            return False
        connection.sendall(b"0\r\n\r\n")
        return True

    def death(self, api):
        if api in ("chat", "completion"):
            return b"data: %s\n\n" % json.dumps({"error": ERROR}).encode()
        return b"event: error\ndata: %s\n\n" % json.dumps({"type": "error", "error": ERROR}).encode()

    def unary(self, connection, api, play):
        body = dict(self.documents[api])
        if "large" in play:
            body["system_fingerprint" if api in ("chat", "completion") else "padding"] = "x" * 300_000
        text = json.dumps(body).encode()
        if play == "unary-whole":
            return document(connection, 200, text)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(text)
        connection.sendall(head + text[: len(text) // 2])
        return False


def document(connection, status, text):
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    connection.sendall(head % (status, len(text)) + text)
    return True


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Forebay:
    """A `forebay serve` before the backend."""

    def __init__(self, binary, backends, folder, model="tiny", more=""):
        self.port, admin = free_port(), free_port()
        config = pathlib.Path(folder) / "forebay.toml"
        config.write_text(
            f'{more}\n[[pools]]\nmodel = "{model}"\npolicy = "round_robin"\nunknown_models = "refuse"\nbackends = ['
            + ", ".join(f'{{ url = "{backend.url}" }}' for backend in backends)
            + "]\n"
        )
        listen = ["--listen", f"127.0.0.1:{self.port}", "--admin", f"127.0.0.1:{admin}"]
        self.process = subprocess.Popen([binary, "serve", "--config", config, *listen], stderr=subprocess.DEVNULL)
        for _ in range(500):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready").close()
                return
            except OSError:
                time.sleep(0.02)
        raise SystemExit("forebay did not start")

    def stop(self):
        self.process.terminate()
        self.process.wait()


def ask(clients, api, play, stream):
    """One request, read to its end."""
    chat, claude = clients
    headers, user = {"x-play": play}, [{"role": "user", "content": "hello"}]
    if api == "chat":
        answer = chat.chat.completions.create(model="tiny", messages=user, stream=stream, extra_headers=headers)
    elif api == "completion":
        answer = chat.completions.create(model="tiny", prompt="hello", stream=stream, extra_headers=headers)
    elif api == "responses":
        answer = chat.responses.create(model="tiny", input="hello", stream=stream, extra_headers=headers)
    else:
        answer = claude.messages.create(
            model="tiny", max_tokens=8, messages=user, stream=stream, extra_headers=headers
        )
    return sum(1 for _ in answer) if stream else 1


def with_python(port):
    base = f"http://127.0.0.1:{port}"
    options = {"api_key": "none", "max_retries": 0, "timeout": 20.0}
    clients = (openai.OpenAI(base_url=f"{base}/v1", **options), anthropic.Anthropic(base_url=base, **options))
    for api in APIS:
        for play, (stream, _) in PLAYS.items():
            try:
                got = {"ended": ask(clients, api, play, stream)}
            except Exception as error:  # noqa: BLE001: whatever the caller would see
                got = {"raised": f"{type(error).__name__}: {str(error)[:60]}"}
            yield {"sdk": "anthropic" if api == "messages" else "openai", "language": "python", "api": api, "play": play} | got


def with_node(port, modules):
    plays = [[api, play, stream] for api in APIS for play, (stream, _) in PLAYS.items()]
    return run_node(f"http://127.0.0.1:{port}", modules, {"PLAYS": json.dumps(plays)})


def run_node(base, modules, what):
    environment = os.environ | {"BASE": base, "MODULES": modules} | what
    out = subprocess.run(
        ["node", HERE / "check.mjs"], env=environment, stdout=subprocess.PIPE, check=True, timeout=120
    ).stdout
    return [json.loads(line) for line in out.splitlines()]


def call_with_python(clients, api, call):
    """One call, with the retries that a client makes by default."""
    chat, claude = clients
    user = [{"role": "user", "content": "hello"}]
    if call == "model-with-slash":
        return (claude if api == "messages" else chat).models.retrieve("org/tiny").id
    if call == "wrong-method":
        return (claude if api == "messages" else chat).post(
            "/v1/models" if api == "messages" else "/models", cast_to=object, body={}
        )
    model = "nope" if call == "unknown-model" else "org/tiny"
    deadly = {"x-play": "kill"} if call.startswith("deadly") else {}
    options = {"model": model, "messages": user, "stream": call == "deadly-stream", "extra_headers": deadly}
    if api == "messages":
        return claude.messages.create(max_tokens=8, **options)
    return chat.chat.completions.create(**options)


def calls(binary, fixtures, modules):
    """What the clients make of refusals, each before engines of its own."""
    for language in ("python", "node") if modules else ("python",):
        for api in ("chat", "messages"):
            for call in CALLS:
                backends = [Backend(fixtures) for _ in range(6)]
                with tempfile.TemporaryDirectory() as folder:
                    forebay = Forebay(binary, backends, folder, "org/tiny", "[health]\nfailures = 100")
                    base = f"http://127.0.0.1:{forebay.port}"
                    try:
                        if language == "python":
                            options = {"api_key": "none", "timeout": 20.0}
                            clients = (
                                openai.OpenAI(base_url=f"{base}/v1", **options),
                                anthropic.Anthropic(base_url=base, **options),
                            )
                            try:
                                got = {"came": str(call_with_python(clients, api, call))}
                            except Exception as error:  # noqa: BLE001: whatever the caller would see
                                got = {"came": type(error).__name__, "said": str(error)[:60]}
                        else:
                            got = run_node(base, modules[0], {"CALL": json.dumps([api, call])})[0]
                    finally:
                        forebay.stop()
                kills = sum(backend.kills for backend in backends)
                right = got["came"] in CALLS[call] and kills <= MOST_DEATHS
                seen = f"{got['came']} {got.get('said', '')}" + (f", {kills} engines died" if kills else "")
                sdk = "anthropic" if api == "messages" else "openai"
                yield {"sdk": sdk, "language": language, "api": api, "play": call, "right": right, "seen": seen}


# A key that may send one request at once, and one a second.
LIMITED = '[[clients.keys]]\nname = "limited"\nkey_env = "LIMITED_KEY"\nrequests_per_minute = 60\nrequests_burst = 1'
SENT = 3


def limited(binary, fixtures):
    """Calls of a key over its limit, sent one after the other: the clients' own retries wait for as long as they are told."""
    backend = Backend(fixtures)
    os.environ["LIMITED_KEY"] = "sk-limited"
    with tempfile.TemporaryDirectory() as folder:
        forebay = Forebay(binary, [backend], folder, more=LIMITED)
        base, user = f"http://127.0.0.1:{forebay.port}", [{"role": "user", "content": "hello"}]
        headers = {"x-play": "unary-whole"}
        try:
            for api in ("chat", "messages"):
                begun, came = time.monotonic(), []
                for _ in range(SENT):
                    try:
                        if api == "chat":
                            client = openai.OpenAI(base_url=f"{base}/v1", api_key="sk-limited", timeout=20.0)
                            raw = client.chat.completions.with_raw_response.create(model="tiny", messages=user, extra_headers=headers)
                        else:
                            client = anthropic.Anthropic(base_url=base, api_key="sk-limited", timeout=20.0)
                            raw = client.messages.with_raw_response.create(model="tiny", max_tokens=8, messages=user, extra_headers=headers)
                        came.append(f"{raw.headers['x-ratelimit-limit-requests']} a minute, {raw.retries_taken} retries")
                    except Exception as error:  # noqa: BLE001: whatever the caller would see
                        came.append(f"{type(error).__name__}: {str(error)[:60]}")
                took = time.monotonic() - begun
                right = all(seen.startswith("60 a minute") for seen in came) and took >= SENT - 2
                seen = "; ".join(came) + f"; {took:.1f} s"
                sdk = "anthropic" if api == "messages" else "openai"
                yield {"sdk": sdk, "language": "python", "api": api, "play": "over-its-limit", "right": right, "seen": seen}
        finally:
            forebay.stop()


def main():
    binary, fixtures, *modules = sys.argv[1:]
    backend = Backend(pathlib.Path(fixtures))
    with tempfile.TemporaryDirectory() as folder:
        forebay = Forebay(binary, [backend], folder, more='[stream]\nidle_timeout = "400ms"\nhead_after = "150ms"')
        try:
            results = list(with_python(forebay.port))
            if modules:
                results += with_node(forebay.port, modules[0])
        finally:
            forebay.stop()
    wrong = 0
    for result in results:
        must_fail = PLAYS[result["play"]][1]
        result["right"] = ("raised" in result) == must_fail
        result["seen"] = result.get("raised") or f"ended, {result['ended']} pieces"
    results += calls(binary, pathlib.Path(fixtures), modules)
    results += limited(binary, pathlib.Path(fixtures))
    for result in results:
        wrong += not result["right"]
        print("%-5s %-10s %-7s %-11s %-16s %s" % (
            "ok" if result["right"] else "WRONG", result["sdk"], result["language"], result["api"], result["play"], result["seen"]))
    print(f"{len(results) - wrong} passed, {wrong} failed")
    sys.exit(1 if wrong or not results else 0)


if __name__ == "__main__":
    main()
