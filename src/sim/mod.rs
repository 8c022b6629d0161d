//! A simulated vLLM: an engine in virtual time, and a server that paces it over HTTP with vLLM's framing and metric names,
//! so that the proxy, the benchmark and the policies can be tried without a GPU. Nothing that serves traffic imports it.

pub mod engine;
pub mod kv;
pub mod profile;
