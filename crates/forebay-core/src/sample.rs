//! What one scrape of a backend's `/metrics` says, summed over its engines. Absent, negative and absurd figures are `None`,
//! never zero: a missing number must not make a backend look idle.

use serde::Serialize;

/// One scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Sequences running (`vllm:num_requests_running`).
    pub running: Option<f64>,
    /// Sequences waiting (`vllm:num_requests_waiting`): the queue depth.
    pub waiting: Option<f64>,
    /// Share of the KV cache in use, 0 to 1, mean over engines.
    pub kv_usage: Option<f64>,
    /// Room of the KV cache, in tokens.
    pub kv_capacity_tokens: Option<u64>,
    /// Tokens of one of its blocks.
    pub kv_block_tokens: Option<u32>,
    /// Prompt tokens looked up in the prefix cache since the start.
    pub prefix_queries: Option<f64>,
    /// Prompt tokens found there.
    pub prefix_hits: Option<f64>,
    /// Preemptions since the start.
    pub preemptions: Option<f64>,
    /// Tokens generated since the start.
    pub generation_tokens: Option<f64>,
    /// Engine steps since the start.
    pub steps: Option<f64>,
}
