//! Forebay: a load-balancing reverse proxy for vLLM servers that measures the true time to the first token of every
//! backend, routes by it, and may change its mind until that token. ARCHITECTURE.md maps the tree.

#![forbid(unsafe_code)]

pub mod admin;
pub mod cli;
#[cfg(feature = "epp")]
pub mod epp;
pub mod proxy;
pub mod server;
pub mod spans;
pub mod tasks;
pub mod upstream;
