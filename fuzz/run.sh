#!/usr/bin/env bash
# Seeds the corpora from the tests' fixtures and runs every fuzz target, one after the other, at low priority.
#
#   fuzz/run.sh SECONDS [TARGET...]
#   fuzz/run.sh --why-not               says what is missing here, if anything
#
# It needs cargo-fuzz, and a nightly compiler, for the fuzzer's instrumentation. The code under test has no `unsafe`, so no
# sanitizer is built in. FUZZ_CORPUS is the folder of the corpora (default target/fuzz/corpus); a corpus grows from run to run. A
# crash ends the run with 1. Its input is in target/fuzz/artifacts, and belongs into a test.
set -euo pipefail
cd "$(dirname "$0")/.."

targets=(sse chunked vllm_metrics config json_body multipart proxy_header bench_answer)
# The ones that need the whole product (their `required-features`), whose build takes minutes.
product=" json_body multipart proxy_header "
built=target/fuzz
corpus=${FUZZ_CORPUS:-$built/corpus}
fixtures=tests/fixtures/vllm-0.32.0
longest=8192

why_not() {
    if ! cargo fuzz --version >/dev/null 2>&1; then
        echo "cargo-fuzz is not installed (cargo install cargo-fuzz --locked)"
    elif ! cargo +nightly --version >/dev/null 2>&1; then
        echo "no nightly compiler is installed"
    fi
}

# What the peer of a recording sent, without the head; and without the sizes of chunks.
coded() { sed '1,/^\r\{0,1\}$/d' "$1"; }
body() { coded "$1" | sed '/^[0-9a-f]\{1,4\}\r$/d'; }

plant() { # TARGET NAME: standard input, cut to what the fuzzer takes
    mkdir -p "$corpus/$1"
    # Reads all of it, so that nobody writes into a closed pipe.
    dd of="$corpus/$1/$2" bs="$longest" count=1 iflag=fullblock status=none
    cat >/dev/null
}

seed() {
    local file name
    for file in "$fixtures"/http/*stream*.response; do
        name=$(basename "$file" .response)
        body "$file" | plant sse "$name"
        coded "$file" | plant chunked "$name"
        case $name in chat-* | completion-* | engine-killed-*) body "$file" | plant bench_answer "$name" ;; esac
    done
    for file in "$fixtures"/metrics/*.txt; do
        # Only the lines that are read: the fuzzer's inputs are short.
        grep -E '^vllm:(num_requests_|num_preempt|kv_cache|gpu_cache|cache_config|prefix_cache|generation_tokens|iteration_tokens_total_count)' "$file" | plant vllm_metrics "$(basename "$file")"
    done
    for file in config/*.toml tests/bad_config/*.toml; do
        plant config "$(basename "$file")" <"$file"
    done
    for file in "$fixtures"/http/{chat,completion,messages,responses,embeddings}*.request; do
        case $file in *20mb*) continue ;; esac
        body "$file" | plant json_body "$(basename "$file" .request)"
    done
    printf '%s\n%s\r\n' 'multipart/form-data; boundary=X' "$(printf -- '--X\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--X\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--X--')" |
        plant multipart form
    printf '%s\n%s\r\n' 'multipart/form-data; boundary="a b"' "$(printf -- '--a b\r\nContent-Disposition: form-data; name="model"\r\nContent-Type: text/plain; charset=utf-16\r\n\r\nw\r\n--a b--')" |
        plant multipart charset
    # The first byte is the size of the pieces. Version 2: signature, command, family, length, addresses, a TLV.
    printf '\x07PROXY TCP4 10.0.0.9 10.0.0.1 4660 80\r\nGET /' | plant proxy_header v1-tcp4
    printf '\x01PROXY TCP6 ::1 ::2 7 80\r\nGET /' | plant proxy_header v1-tcp6
    printf '\x10PROXY UNKNOWN ffff::1 ffff::2 1 2\r\nGET /' | plant proxy_header v1-unknown
    local signature='\r\n\r\n\x00\r\nQUIT\n'
    printf "\x03$signature"'\x21\x11\x00\x12\x0a\x00\x00\x09\x0a\x00\x00\x01\x12\x34\x00\x50\xea\x00\x03\x01\x02\x03GET /' | plant proxy_header v2-tcp4
    printf "\xff$signature"'\x21\x21\x00\x24%s\x00\x07\x00\x50GET /' "$(printf '%032d' 0)" | plant proxy_header v2-tcp6
    printf "\x02$signature"'\x20\x00\x00\x00GET /' | plant proxy_header v2-local
}

if [ "${1:-}" = --why-not ]; then
    why_not
    exit
fi
seconds=${1:?usage: fuzz/run.sh SECONDS [TARGET...]}
shift
if [ $# -gt 0 ]; then targets=("$@"); fi
why=$(why_not)
if [ -n "$why" ]; then
    echo "fuzz/run.sh: $why" >&2
    exit 2
fi

features=(--no-default-features)
for target in "${targets[@]}"; do
    case $product in *" $target "*) features=() ;; esac
done

seed
failed=0
for target in "${targets[@]}"; do
    echo "== $target, $seconds s"
    mkdir -p "$built/artifacts/$target"
    nice -n 10 cargo +nightly fuzz run "${features[@]}" --sanitizer none --fuzz-dir fuzz --target-dir "$built" "$target" "$corpus/$target" -- \
        -artifact_prefix="$built/artifacts/$target/" -max_total_time="$seconds" -max_len="$longest" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=0 || failed=1
done
exit "$failed"
