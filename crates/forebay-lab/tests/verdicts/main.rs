//! How often verdicts are right, on experiments that were made up: the rate of winners where there is no difference, how often the
//! interval holds the truth, how often a true difference is named, and that a report contradicts no table of its own. The generator
//! here shares nothing with the code that judges. `cargo test -p forebay-lab --test verdicts -- --nocapture --test-threads 1` prints
//! the tables; `FOREBAY_SIZE=full` makes 20,000 experiments of each, and holds them to the bounds without a margin. `FOREBAY_SEED` moves
//! every seed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod compared;
mod live;
mod made;
mod odd;
mod rates;
mod reports;
mod rows;
