//! What one scrape of a backend's `/metrics` says. Plain numbers; unknown is `None`, never zero.

use serde::Serialize;

/// One reading of a vLLM server. Sums are over its engines (data-parallel ranks).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Sequences running.
    pub running: Option<f64>,
    /// Sequences waiting.
    pub waiting: Option<f64>,
    /// Share of the KV cache in use, 0 to 1, mean over engines.
    pub kv_usage: Option<f64>,
    /// Tokens that the KV cache holds.
    pub kv_capacity_tokens: Option<u64>,
    /// Prompt tokens looked up in the prefix cache, since the server's start.
    pub prefix_queries: Option<f64>,
    /// Prompt tokens found there, since the server's start.
    pub prefix_hits: Option<f64>,
    /// Sequences preempted, since the server's start.
    pub preemptions: Option<f64>,
    /// Tokens generated, since the server's start.
    pub generation_tokens: Option<f64>,
    /// Engine steps, since the server's start.
    pub steps: Option<f64>,
}
