//! Why an arm was not faster: what the diagnosis says of the benchmark that this project answers, from its table alone, and of
//! simulated runs whose cause is known. To read the figures: `cargo test --release --test diagnosis -- --nocapture`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod causes;
mod crossover;
mod published_benchmark;
mod world;
