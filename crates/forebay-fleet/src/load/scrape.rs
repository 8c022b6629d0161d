//! The last good scrape of a backend, and what it left over for others at that instant: load that vLLM has beyond what was
//! sent from here. An absurd figure is absent, and one that is absent is never taken for zero.

use std::time::Duration;

use forebay_core::clock::Time;
use forebay_core::sample::Sample;

/// A good scrape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scrape {
    pub(crate) sample: Sample,
    pub(crate) at: Time,
    pub(crate) stale_at: Time,
    /// Others' sequences running.
    pub(crate) running: f64,
    /// Others' sequences waiting.
    pub(crate) waiting: f64,
    /// Others' tokens in the KV cache.
    pub(crate) kv_tokens: f64,
}

/// Own load at the instant of a scrape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own {
    pub(crate) prefilling: u32,
    pub(crate) decoding: u32,
    pub(crate) kv_tokens: u64,
}

impl Scrape {
    /// Returns what the sample says beside `own`; from `stale_after` on it counts as absent.
    pub(crate) fn new(sample: Sample, own: Own, now: Time, stale_after: Duration) -> Scrape {
        // The reader of the text has done so already. A sample may come from elsewhere, and one NaN would decide
        // every comparison.
        let sane = |value: Option<f64>| value.filter(|value| value.is_finite() && *value >= 0.0);
        let sample = Sample {
            running: sane(sample.running),
            waiting: sane(sample.waiting),
            kv_usage: sane(sample.kv_usage).filter(|usage| *usage <= 1.0),
            kv_capacity_tokens: sample.kv_capacity_tokens.filter(|room| *room > 0),
            kv_block_tokens: sample.kv_block_tokens.filter(|tokens| *tokens > 0),
            prefix_queries: sane(sample.prefix_queries),
            prefix_hits: sane(sample.prefix_hits),
            ..sample
        };
        let (prefilling, decoding) = (f64::from(own.prefilling), f64::from(own.decoding));
        let (mut running, mut waiting) = (0.0, 0.0);
        // Both or nothing: half of the truth set against all of our own would hide others' load or invent some.
        if let (Some(all_running), Some(all_waiting)) = (sample.running, sample.waiting) {
            let foreign = (all_running + all_waiting - prefilling - decoding).max(0.0);
            // Our own prefilling requests may be running there by now, or still wait: what cannot be ours waits for
            // others.
            waiting = foreign.min((all_waiting - prefilling).max(0.0));
            running = foreign - waiting;
        }
        let kv_tokens = match (sample.kv_usage, sample.kv_capacity_tokens) {
            // vLLM tells a share of its memory; beside our own tokens the rest is other clients'.
            (Some(usage), Some(room)) => (usage * room as f64 - own.kv_tokens as f64).max(0.0),
            _ => 0.0,
        };
        Scrape { sample, at: now, stale_at: now + stale_after, running, waiting, kv_tokens }
    }
}
