"""Runs of `vllm bench serve`, each in a process of its own that has vLLM loaded from the start.

The program takes 10 s to load and some more to make a turn's prompts. So this process loads it once and forks for each run, and a run makes its
prompts while the turn before is under way: it stops where `vllm bench serve` waits for its endpoint, and goes on when the driver says so. All else is
vLLM's own. A line of standard input is a run, {"name", "arguments", "log", "go"}: the file `go` is what the run waits for. Lines of standard output:
{"name", "ready"}, {"name", "ended"}.
"""

import asyncio
import json
import os
import sys
import threading
import traceback

from vllm.benchmarks import serve
from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput

lock = threading.Lock()


def say(**line):
    with lock:
        os.write(1, json.dumps(line).encode() + b"\n")


def run(order):
    """In the forked process."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    answers = os.dup(1)
    os.dup2(log, 1)
    os.dup2(log, 2)

    async def wait(*_, **__):
        os.write(answers, json.dumps({"name": order["name"], "ready": True}).encode() + b"\n")
        while not os.path.exists(order["go"]):
            await asyncio.sleep(0.005)
        return RequestFuncOutput(success=True)

    serve.wait_for_endpoint = wait
    parser = serve.FlexibleArgumentParser()
    serve.add_cli_args(parser)
    serve.main(parser.parse_args(order["arguments"]))
    sys.stdout.flush()


def reap(name, process):
    _, status = os.waitpid(process, 0)
    say(name=name, ended=os.waitstatus_to_exitcode(status))


say(name="client", ready=True)
for line in sys.stdin:
    order = json.loads(line)
    process = os.fork()
    if process == 0:
        code = 1
        try:
            run(order)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:  # the log says what
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    threading.Thread(target=reap, args=(order["name"], process), daemon=True).start()
