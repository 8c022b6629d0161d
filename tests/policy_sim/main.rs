//! The routing policies proved in virtual time: the real dispatcher over the simulator's engines, seeded, beside a clairvoyant
//! oracle on the same arrivals. `cargo test --release --test policy_sim -- --nocapture` prints the tables. A build without
//! optimisation runs one seed of a few workloads.

#![cfg(feature = "sim")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod engines;
mod figures;
mod oracle;
mod peers;
mod prefixes;
mod traffic;
mod trials;
mod workloads;
mod world;

mod ablations;
mod affinity;
mod bounds;
mod properties;
mod replicas;
mod unseen;
