//! `experiment.toml`: arms on the same GPUs, measured in turn. Starts an arm's servers, waits for their health, warms them up,
//! sends the load through Forebay or directly, stops them, and goes on from the last whole epoch after a crash or at the next
//! call. What it leaves is a row file like any other: no figure is made here.

mod file;
mod front;
mod health;
mod journal;
mod machine;
mod outline;
pub mod plan;
mod process;
mod runner;
mod schema;
mod servers;
pub mod spec;
mod turn;
mod words;

pub use file::read;
pub use journal::rows_in;
pub use machine::machine_in;
pub use outline::outline;
pub use runner::{ExperimentError, Options, Outcome, Say, run};
pub use words::shell_line;
