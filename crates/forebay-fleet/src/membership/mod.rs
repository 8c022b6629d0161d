//! Who the backends are and whether they take requests: the snapshot that readers load, and its one writer, the controller.

pub mod controller;
pub mod drains;
mod record;
mod serving;
mod settings;
pub mod snapshot;
