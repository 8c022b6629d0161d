//! What one attempt takes of a backend's load, and what it holds until it ends.
//!
//! Hot path: plain numbers, no allocation.

use forebay_core::clock::Time;
use forebay_core::routing::facts::Kind;

/// Where an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Prefill,
    Decode,
}

/// What one attempt holds of a load: the same numbers are given back as were taken.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) attempt: u64,
    pub(super) phase: Phase,
    pub(super) kind: Kind,
    /// The number in the prefill queue.
    pub(super) queued: u64,
    pub(super) sequences: u32,
    pub(super) tokens: u32,
    pub(super) claimed: u32,
    pub(super) depth: f64,
    pub(super) prompt: u32,
    pub(super) kv_tokens: u64,
    pub(super) raw: f64,
    pub(super) dispatched: Time,
    pub(super) last_event: Time,
    /// What the backend had prefilled for this proxy at the last event, in tokens.
    pub(super) prefilled: u64,
}

/// What an attempt brings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// Sequences in the engine; 0 for what never reaches it.
    pub(super) sequences: u32,
    /// Uncached prompt tokens.
    pub(super) tokens: u32,
    /// Prompt tokens, cached or not.
    pub(super) prompt: u32,
    /// Prompt tokens that were sent here before.
    pub(super) claimed: u32,
    /// Tokens that the cache has used since it used those.
    pub(super) depth: f64,
    /// Expected TTFT before the backend's ratio, in seconds.
    pub(super) raw: f64,
    /// The pool's dispatch number.
    pub(super) turn: u64,
}
