//! Whether doing something about a named cause helps. Runs of any settings are made on an engine of the tests' own, diagnosed from
//! their rows, and made again with twice of what was named. `cargo test -p forebay-lab --test diagnosis -- --nocapture` prints the
//! tables; `FOREBAY_SIZE=full` makes more runs of each kind, and `FOREBAY_SEED` others.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod cases;
mod engine;
mod rates;
mod server;
mod setup;
mod truth;
