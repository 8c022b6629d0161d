#!/usr/bin/env bash
# Makes a profile, by which the compiler lays out what a release executes most: builds a forebay that counts what it executes, and puts
# the load of `benches/peers` on it.
#
#   packaging/profile.sh FILE [ARGUMENT...]
#   RUSTFLAGS="-Cprofile-use=FILE" cargo build --release --locked [ARGUMENT...]
#
# FILE: where the profile goes; an absolute path, as the compiler runs in many folders. The arguments are those of the release's
# `cargo build`: the profile of a build for another target, or with other features, fits none of its functions. Two builds and a minute
# of load on the loopback interface. It needs the compiler's llvm-profdata (rustup component add llvm-tools) and asks no network but cargo's.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# = 0 ] || [[ "$1" != /* ]]; then
    echo "usage: packaging/profile.sh /ABSOLUTE/FILE [ARGUMENT of cargo build...]" >&2
    exit 2
fi
file=$1
shift
host=$(rustc -vV | sed -n 's/^host: //p')
profdata=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
if [ ! -x "$profdata" ]; then
    echo "profile.sh: the compiler's llvm-profdata is not installed: rustup component add llvm-tools" >&2
    exit 1
fi

counting=${CARGO_TARGET_DIR:-$PWD/target}/counting
raw=$counting/raw
rm -rf "$raw"
# What counts cannot be left out of a binary, so this one also has the parts of pingora that nothing calls. zlib, which they would call,
# is not there (.cargo/config.toml): its functions have the address 0.
zlib=(deflate deflateEnd deflateInit2_ deflateParams deflateReset deflateSetDictionary inflate inflateEnd inflateInit2_ inflateReset2
    inflateSetDictionary zlibVersion)
absent=()
for name in "${zlib[@]}"; do absent+=("-Clink-arg=-Wl,--defsym=$name=0"); done
# By cargo's own word, since the arguments decide in which folder the binary is.
binary=$(RUSTFLAGS="${RUSTFLAGS:-} -Cprofile-generate=$raw" cargo rustc --release --locked --target-dir "$counting" "$@" \
    --bin forebay --message-format json-render-diagnostics -- "${absent[@]}" |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)

# A file for each process. One that ends by SIGTERM writes its own.
LLVM_PROFILE_FILE="$raw/%p.profraw" FOREBAY_BIN=$binary \
    cargo bench --locked --bench peers -- --works paced,unpaced,unary,prompts --contenders forebay --rounds 3
# By their names, since what a build executes may have left some, too.
if ! compgen -G "$raw/[0-9]*.profraw" >/dev/null; then
    echo "profile.sh: $binary has counted nothing: the output above says why" >&2
    exit 1
fi
"$profdata" merge --output "$file" "$raw"/[0-9]*.profraw
ls -l "$file"
