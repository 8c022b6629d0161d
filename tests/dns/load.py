"""Asks a Forebay for streams until the file `stop` is there: four clients, one request after the other. Writes "FAILED of ALL" to `counts`.

A request has failed if it has no 200, no end, or not the end that vLLM gives. The script that starts this one counts on none.
"""
import itertools, json, os, threading, urllib.request

URL = os.environ.get("FOREBAY_URL", "http://127.0.0.1:8080") + "/v1/chat/completions"
# The models that are asked for in turn.
MODELS = os.environ.get("FOREBAY_MODELS", "m").split()
counts, lock = {"failed": 0, "all": 0}, threading.Lock()


def body(model):
    return json.dumps({"model": model, "stream": True, "max_tokens": 8, "messages": [{"role": "user", "content": "hello"}]}).encode()


def client():
    bodies = itertools.cycle([body(model) for model in MODELS])
    while not os.path.exists("stop"):
        try:
            request = urllib.request.Request(URL, next(bodies), {"content-type": "application/json"})
            failed = b"[DONE]" not in urllib.request.urlopen(request, timeout=30).read()
        except OSError as error:
            failed = True
            print(error, flush=True)
        with lock:
            counts["failed"] += failed
            counts["all"] += 1


threads = [threading.Thread(target=client) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with open("counts", "w") as file:
    file.write("{failed} of {all}".format(**counts))
