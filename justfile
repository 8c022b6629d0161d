# What is done often here. `just` lists it; every recipe is one command that works without just as well.

_list:
    @just --list --unsorted

# Every test: the README's command.
test:
    cargo test

# What CI checks, on this checkout.
ci:
    .ci/run

# Formatting, lints and the shape of the tree: before each commit.
check:
    cargo fmt --check
    cargo clippy --all-targets --locked -- -D warnings
    cargo test --test tidy

# Sizes of crates, files and functions, names that mean two things, and how far a key, a policy or a metric reaches.
measure folder=".":
    python3 .ci/measure.py {{folder}}

# Instruction counts of the pure paths against the stored ones (needs valgrind and gungraun-runner).
instructions *args:
    cargo bench --locked --bench instructions_guard -- {{args}}

# Beside nginx, HAProxy, Envoy and, with FOREBAY_BASE, an earlier Forebay.
peers *args:
    cargo bench --locked --bench peers -- {{args}}

# docs/configuration.md and the golden files, written anew.
golden:
    UPDATE_GOLDEN=1 cargo test
