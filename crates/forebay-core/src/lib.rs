//! What Forebay decides and reads, as functions of their arguments: which backend a request goes to, what a client may use, what
//! follows a failure, chunks' bytes as data, streams' bytes as events, the text of a vLLM server's `/metrics`, what a Kubernetes
//! cluster lists, and TOML files that people write. No async, no
//! I/O, no lock: time and chance come in.

#![forbid(unsafe_code)]

pub mod chunked;
pub mod clock;
pub mod error;
pub mod kubernetes;
pub mod rate_limit;
pub mod routing;
pub mod sample;
pub mod so_far;
pub mod stream;
pub mod terminal;
pub mod toml_reader;
pub mod units;
pub mod vllm_metrics;
