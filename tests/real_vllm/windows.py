"""Models with sliding windows: the KV cache that a sequence takes of a real vLLM, beside what `forebay plan` says that it takes.

    windows.py VENV FOREBAY PORT PORT      starts its servers itself, by serve.sh

Both models have the class of Gemma 3, random weights and a window of 256 tokens in most layers. The second has five such layers
beside two without a window, so that vLLM pads its blocks. One line a check; the last line is `N passed, N failed`; exit 1 on a failure.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from wire import Answer, get, run_checks, samples, total

VENV, FOREBAY = (pathlib.Path(path).resolve() for path in sys.argv[1:3])
PORTS = sys.argv[3:5]
HERE = pathlib.Path(__file__).resolve().parent
HOST = HERE.parent / "fixtures/hosts/one-4090"
KV_CACHE = 64 << 20
PROMPT, OUTPUT = 3000, 300
APART = 0.04  # of a block's rounding, which the plan leaves out
SLIDING, FULL = "sliding_attention", "full_attention"


def make(folder, layers):
    """Writes a model without weights, which vLLM makes up."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(VENV / "tiny-model" / name, folder)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "dtype": "float32", "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": len(layers), "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 32, "vocab_size": 465, "max_position_embeddings": 32768, "sliding_window": 256, "layer_types": layers,
        "query_pre_attn_scalar": 32, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}))


def planned(folder, tokens):
    """Bytes of the KV cache that a sequence of so many tokens takes while it decodes, by `forebay plan`."""
    text = subprocess.run(
        [FOREBAY, "plan", "--topo", HOST / "topo.txt", "--gpu-memory", "24GiB", "--model-config", folder, "--dtype", "float32",
         "--input-len", str(tokens - 1), "--output-len", "2", "--json"], check=True, capture_output=True, text=True).stdout
    room = json.loads(text)["layouts"][0]["arms"][0]["servers"][0]["room"]
    return room["per_token"] * tokens


def taken(base):
    """(tokens of the one sequence that runs, bytes in use) at some moments of its decoding."""
    ((labels, _),) = samples(get(base, "/metrics"), "vllm:cache_config_info")
    blocks = int(labels["num_gpu_blocks"])
    body = {"model": "tiny", "prompt": [300 + at % 100 for at in range(PROMPT)], "max_tokens": OUTPUT, "ignore_eos": True,
            "temperature": 0, "stream": True}
    before = total(get(base, "/metrics"), "vllm:generation_tokens_total")
    answer, found = Answer(base, "/v1/completions", body), []
    for number, _ in enumerate(answer.events()):
        if number % 50 == 10:
            text = get(base, "/metrics")
            made = total(text, "vllm:generation_tokens_total") - before
            used = total(text, "vllm:kv_cache_usage_perc")
            # One block is vLLM's own and never in use. Before the first and after the last step nothing is told of this sequence.
            if used and 0 < made < OUTPUT:
                found.append((PROMPT + int(made), used * (blocks - 1) * KV_CACHE / blocks))
    answer.leave()
    return found


def check(port, layers):
    with tempfile.TemporaryDirectory() as above:
        folder = pathlib.Path(above) / "window"
        make(folder, layers)
        serve = ["bash", HERE / "serve.sh"]
        told = os.environ | {"MODEL": str(folder), "MAX_LEN": "8192", "KV_CACHE": str(KV_CACHE)}
        subprocess.run([*serve, VENV, port, "tiny", "--load-format", "dummy"], check=True, env=told, stdout=subprocess.DEVNULL)
        try:
            found = taken(f"http://127.0.0.1:{port}")
        finally:
            subprocess.run([*serve, "--stop", port], check=True)
        if not found:
            raise AssertionError("no moment of the decoding was seen")
        shown = [(tokens, round(used), planned(folder, tokens)) for tokens, used in found]
        off = max(abs(ours / used - 1) for _, used, ours in shown)
        if off > APART:
            raise AssertionError(f"{off:.1%} apart: {shown}")
        return f"{len(shown)} moments, at most {off:.1%} apart; at {shown[-1][0]} tokens {shown[-1][1]} bytes, planned {shown[-1][2]}"


def five_of_six_layers_have_a_window():
    return check(PORTS[0], [SLIDING] * 5 + [FULL])


def five_of_seven_layers_have_a_window_and_blocks_are_padded():
    return check(PORTS[1], [SLIDING, SLIDING, FULL, SLIDING, SLIDING, SLIDING, FULL])


if __name__ == "__main__":
    sys.exit(run_checks([five_of_six_layers_have_a_window, five_of_seven_layers_have_a_window_and_blocks_are_padded]))
