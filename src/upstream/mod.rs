//! Backends as HTTP servers.

pub mod probe;
