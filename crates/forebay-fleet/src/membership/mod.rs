//! Who the backends are and whether they take requests: the snapshot that readers load, and its one writer, the controller.

pub mod controller;
mod discovery;
pub mod drains;
mod record;
pub mod replicas;
pub mod roster;
mod serving;
mod settings;
pub mod snapshot;
pub mod source;
