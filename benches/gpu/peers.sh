#!/usr/bin/env bash
# Forebay beside the balancers that a user would pick instead, before two real vLLM servers on one GPU.
#
#   peers.sh SCENARIO[,SCENARIO...] [TURNS]        TURNS is 2 unless told
#
# The servers start once and stay up for the next call. The contenders take turns (A B C D, D C B A), each turn with prompts of its own. The client
# is `vllm bench serve`. What it saves of each request becomes a row, for `forebay compare OUT/SCENARIO.jsonl` and `peers/table.py`. A later call
# goes on after the last whole turn; if the servers were started anew in between, with a new start. Exit code 75: the time was over, call again.
#
# SCENARIO    hetero, prefix, half, chat, mixed, burst: peers/loads.py describes each, with its size
#
# Environment:
# CONTENDERS  "forebay vllm-router:cache_aware nginx:least_conn placed" unless told. Also forebay:threads=N, forebay@base (FOREBAY_BASE),
#             vllm-router:power_of_two, vllm-router:consistent_hash, nginx:hash. `placed` is perfect placement without a proxy: two clients,
#             each server is sent what is its own. One that is not installed is skipped.
# OUT         where rows and machine.txt go (BASE/out), and what an earlier call measured
# BASE        /tmp/forebay-peers: logs, caches of the compiler, notes on the servers
# FOREBAY     target/release/forebay; NGINX: nginx; ROUTER: a folder of the unpacked wheel, unless Python finds it
# PYTHON      runs vLLM; MODELS: a folder with the model MODEL (qwen7b), config and tokenizer; SERVER_ARGS: more for `vllm serve`
# RATE        requests/s in place of the scenario's, of all or of one (prefix=30); 70%: of what a probe of perfect placement carried
# SPAN        seconds of arrivals
# LIMIT       seconds for this call. No turn begins in the last 60
# RESTART=1   ends the servers first; KEEP=0 ends them at last; ALL_SERVERS=1 starts those of all scenarios; GPUS=2: one server a GPU
# DECISIONS=1 Forebay logs each decision, to BASE/logs
# SIM=1       simulated servers, and `forebay bench` as client unless CLIENT=vllm: a rehearsal on a machine without a GPU, with 5 s of arrivals and
#             a fifth of the prefixes (SCALE=0.2). All six scenarios take under five minutes with one turn each
#
# On a machine without a network: benches/gpu/run.sh PARTS benches/gpu/peers.sh SCENARIO [TURNS]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if (($# == 0)); then
  sed -n '2,/^set/{/^#/p}' "${BASH_SOURCE[0]}"
  exit 2
fi
# NVLink multicast stays off: a program that uses it can put GPUs that others share out of service.
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1 VLLM_USE_FLASHINFER_SAMPLER=0
# No network: nothing is fetched or reported, and all talk is over loopback.
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_HOST_IP=127.0.0.1 NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
export CUDA_MODULE_LOADING=LAZY PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" "$here/peers/driver.py" "$@"
