//! A simulated vLLM: an engine in virtual time, and a server that paces it over HTTP with vLLM's framing and metric names,
//! so that the proxy, the benchmark and the policies can be tried without a GPU. Nothing that serves traffic imports it.
//!
//! | module | what it is for |
//! |---|---|
//! | [`engine`] | the scheduler and the KV memory, as functions of their arguments |
//! | [`text`] | the tokenizer and the model's words |
//! | [`profile`] | what an engine imitates, from `config/sim/` |
//! | [`server`] | the HTTP server that runs an engine in real time, and can be made to fail |

#![forbid(unsafe_code)]

pub mod engine;
pub mod profile;
pub mod server;
pub mod text;
