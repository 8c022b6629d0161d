//! Forebay: a load-balancing reverse proxy for vLLM servers that measures the true time to the first token of every
//! backend, routes by it, and may change its mind until that token. ARCHITECTURE.md maps the tree.

#![forbid(unsafe_code)]

pub mod admin;
#[cfg(feature = "bench")]
pub mod bench;
pub mod cli;
pub mod clock;
pub mod config;
pub mod error;
pub mod fleet;
#[cfg(feature = "plan")]
pub mod plan;
pub mod proxy;
pub mod routing;
pub mod server;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "bench")]
pub mod stats;
pub mod stream;
pub mod tasks;
pub mod telemetry;
pub mod units;
pub mod upstream;
