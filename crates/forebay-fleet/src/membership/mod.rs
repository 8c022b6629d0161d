//! Who the backends are and whether they take requests: the snapshot that readers load, and its one writer, the controller.

pub mod controller;
mod record;
pub mod replicas;
pub mod roster;
mod serving;
pub mod snapshot;

pub use controller::drains;
