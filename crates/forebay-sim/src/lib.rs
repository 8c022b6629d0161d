//! A simulated vLLM: an engine in virtual time, and a server that paces it over HTTP with vLLM's framing and metric names,
//! so that the proxy, the benchmark and the policies can be tried without a GPU. Nothing that serves traffic imports it.

#![forbid(unsafe_code)]

pub mod engine;
pub mod faults;
pub mod framing;
pub mod http;
pub mod kv;
pub mod metrics;
pub mod pacer;
pub mod profile;
pub mod request;
pub mod stream;
pub mod text;
pub mod ticket;
mod wire;
