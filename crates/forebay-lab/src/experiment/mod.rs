//! `experiment.toml`: arms on the same GPUs, measured in turn. Starts an arm's servers, waits for their health, warms them up,
//! sends the load through Forebay or directly, stops them, and goes on from the last whole epoch after a crash or at the next
//! call. What it leaves is a row file like any other: no figure is made here.

mod file;
mod journal;
mod outline;
pub mod plan;
mod processes;
mod runner;
pub mod spec;
mod turn;

pub use file::read;
pub use journal::rows_in;
pub use outline::outline;
pub use processes::machine::machine_in;
pub use runner::{ExperimentEnd, ExperimentError, ExperimentOptions, Say, run};
