"""Records what vLLM's own scheduler does, without a model: the fixture that the simulated engine is compared with.

  VENV/bin/python tests/real_vllm/schedule.py VENV/tiny-model > tests/fixtures/vllm-0.32.0/scheduler.json

Each scenario is a list of requests and, for each step, what was scheduled and what was left: [decoding sequences, prompt
tokens, running, waiting, blocks in use, preemptions so far]. Asynchronous scheduling is off: the simulated engine has none.
"""

import json
import os
import random
import sys

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

BLOCK = 16


def scheduler(model, max_num_seqs, budget, blocks, caching):
    """`blocks` that can be used: vLLM keeps one more, the null block."""
    sched = SchedulerConfig(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, max_model_len=2048, enable_chunked_prefill=True,
        is_encoder_decoder=False, async_scheduling=False,
    )
    cache = CacheConfig(block_size=BLOCK, cache_dtype="auto", enable_prefix_caching=caching)
    config = VllmConfig(
        scheduler_config=sched, cache_config=cache, device_config=DeviceConfig("cpu"),
        model_config=ModelConfig(model=model, tokenizer=model, dtype="float32", seed=0, max_model_len=2048),
    )
    cache.num_gpu_blocks = blocks + 1
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    kv = KVCacheConfig(num_blocks=blocks + 1, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    return Scheduler(
        vllm_config=config, kv_cache_config=kv, log_stats=True, block_size=BLOCK,
        structured_output_manager=StructuredOutputManager(config),
    )


def prompt(number, length, family, shared):
    """The first `shared` tokens are the family's, the others the request's own."""
    return [1000 * (family + 1) + at if at < shared else 100_000 + 1000 * number + at for at in range(length)]


def record(model, name, limits, requests):
    max_num_seqs, budget, blocks, caching = limits
    sched = scheduler(model, max_num_seqs, budget, blocks, caching)
    hasher = get_request_block_hasher(BLOCK, sha256) if caching else None
    steps, preemptions, step, todo = [], 0, 0, list(enumerate(requests))
    prefix = [0, 0]
    while todo or sched.has_unfinished_requests():
        while todo and todo[0][1]["step"] <= step:
            number, ask = todo.pop(0)
            sampling = SamplingParams(max_tokens=ask["output"], ignore_eos=True)
            sampling.update_from_generation_config({}, eos_token_id=0)
            tokens = prompt(number, ask["prompt"], ask["family"], ask["shared"])
            sched.add_request(Request(str(number), tokens, sampling, None, block_hasher=hasher))
        before = {request.request_id: request.num_computed_tokens for request in sched.running}
        ran = {request.request_id: request.num_preemptions for request in sched.running}
        out = sched.schedule()
        preemptions += sum(sched.requests[one].num_preemptions - count for one, count in ran.items())
        decoding, prefill, req_ids, sampled = 0, 0, [], []
        for one, count in out.num_scheduled_tokens.items():
            request = sched.requests[one]
            if request.num_output_tokens and count == 1 and request.num_computed_tokens == request.num_tokens:
                decoding += 1
            else:
                prefill += count
            req_ids.append(one)
            done = request.num_computed_tokens == request.num_tokens
            sampled.append([200_000 + 1000 * int(one) + request.num_output_tokens] if done else [])
        used = blocks - sched.kv_cache_manager.block_pool.get_num_free_blocks()
        steps.append([decoding, prefill, len(sched.running), len(sched.waiting), used, preemptions])
        outputs = sched.update_from_output(
            out, ModelRunnerOutput(req_ids=req_ids, req_id_to_index={one: at for at, one in enumerate(req_ids)},
                                   sampled_token_ids=sampled))
        for output in outputs.values():
            stats = output.scheduler_stats and output.scheduler_stats.prefix_cache_stats
            if stats:
                prefix = [prefix[0] + stats.queries, prefix[1] + stats.hits]
        step += 1
        assert step < 10_000
    return {
        "name": name, "max_num_seqs": max_num_seqs, "max_num_batched_tokens": budget, "num_blocks": blocks,
        "prefix_caching": caching, "requests": requests, "steps": steps, "prefix_queries": prefix[0], "prefix_hits": prefix[1],
    }


def main():
    model = sys.argv[1]
    init_none_hash(sha256)
    draw = random.Random(1)
    burst = [{"step": 0, "prompt": 100, "output": draw.randint(5, 120), "family": number, "shared": 0} for number in range(100)]
    mixed, step = [], 0
    for number in range(60):
        length = draw.choice([1, 15, 16, 17, 40, 64, 90, 150, 300])
        shared = draw.choice([0, 16, 40, 64])
        mixed.append({"step": step, "prompt": length, "output": draw.randint(1, 90), "family": draw.randint(0, 2), "shared": min(shared, length)})
        step += draw.choice([0, 0, 1, 3, 10])
    scenarios = [
        record(model, "a burst that overfills the memory, no prefix cache", (64, 512, 300, False), burst),
        record(model, "the same with a prefix cache: preempted sequences find their own blocks", (64, 512, 300, True), burst),
        record(model, "mixed prompts that share beginnings, little memory, small chunks", (8, 64, 40, True), mixed),
    ]
    rows = []
    for one in scenarios:
        # A line for a scenario's figures, one for its requests, one for its steps.
        parts = {key: one.pop(key) for key in ("requests", "steps")}
        head = json.dumps(one)[:-1]
        rows.append(head + "".join(f',\n"{key}": {json.dumps(value, separators=(",", ":"))}' for key, value in parts.items()) + "}")
    print("[" + ",\n".join(rows) + "]")


main()
