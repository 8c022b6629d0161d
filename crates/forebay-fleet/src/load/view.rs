//! A load as `/api/fleet` shows it.

use serde::Serialize;

use forebay_core::sample::Sample;

/// A load in numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoadView {
    /// Attempts open, those that never reach the engine included.
    pub open_attempts: u32,
    /// Own sequences without a first token; unary ones to their end.
    pub prefilling: u32,
    /// Own sequences past their first token.
    pub decoding: u32,
    /// Own outstanding uncached prompt tokens, estimated.
    pub queued_prompt_tokens: u64,
    /// Own tokens in the KV cache, estimated.
    pub kv_tokens: u64,
    /// For how long the oldest prompt can have been in progress.
    pub head_for_seconds: Option<f64>,
    /// Its uncached tokens.
    pub head_tokens: Option<u32>,
    /// Others' running sequences.
    pub foreign_running: f64,
    /// Others' waiting sequences.
    pub foreign_waiting: f64,
    /// Others' tokens in the KV cache.
    pub foreign_kv_tokens: f64,
    /// Sequences completed a second.
    pub completions_per_second: f64,
    /// Tokens that it has generated for requests from here.
    pub generated_tokens: u64,
    /// Worth of an expected prefix hit here, 0 to 1, as learned from the hits that vLLM reports; 1 until there is evidence.
    pub prefix_worth: f64,
    /// The most sequences that its engine runs at once, as scrapes showed it; none where it is not known.
    pub running_limit: Option<u32>,
    /// Blamed failures since the last success, one for each open period.
    pub fails: u32,
    /// For how much longer the backend is left alone.
    pub open_for_seconds: f64,
    /// An attempt sent after the last failure is out.
    pub probing: bool,
    /// Scrapes that failed in a row.
    pub scrape_failures: u32,
    /// The last good scrape; none before the first.
    pub scrape: Option<ScrapeView>,
}

/// The last good scrape.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScrapeView {
    /// Its age.
    pub age_seconds: f64,
    /// Too old to be believed: it counts as absent.
    pub stale: bool,
    /// Sequences that vLLM says are waiting.
    pub queue_depth: Option<f64>,
    /// All of it.
    pub sample: Sample,
}
