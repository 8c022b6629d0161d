//! The simulated server: vLLM's routes, bodies and metrics over an engine that runs in real time. `http` puts the parts together.

mod cors;
pub mod faults;
pub mod framing;
pub mod http;
pub mod metrics;
pub mod pacer;
pub mod request;
pub mod stream;
pub mod ticket;
mod wire;
