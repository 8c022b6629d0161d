//! What one attempt takes of a backend's load, and what it holds until it ends.
//!
//! Hot path: plain numbers, no allocation.

use forebay_core::clock::Time;
use forebay_core::routing::facts::Kind;

/// The phase of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Prefill,
    Decode,
}

/// The amounts that one attempt holds of a load: the same numbers are given back as were taken.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) attempt: u64,
    pub(crate) phase: Phase,
    pub(crate) kind: Kind,
    /// The number in the prefill queue.
    pub(crate) queued: u64,
    pub(crate) sequences: u32,
    pub(crate) oversized: bool,
    pub(crate) tokens: u32,
    pub(crate) claimed: u32,
    pub(crate) depth: f64,
    pub(crate) prompt: u32,
    pub(crate) kv_tokens: u64,
    pub(crate) raw: f64,
    pub(crate) dispatched: Time,
    pub(crate) last_event: Time,
    /// Tokens that the backend had prefilled for this proxy at the last event.
    pub(crate) prefilled: u64,
}

/// The amounts that an attempt brings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseRequest {
    pub(crate) kind: Kind,
    /// Sequences in the engine; 0 for what never reaches it.
    pub(crate) sequences: u32,
    /// It makes more sequences than the pool lets one backend have.
    pub(crate) oversized: bool,
    /// Uncached prompt tokens.
    pub(crate) tokens: u32,
    /// Prompt tokens, cached or not.
    pub(crate) prompt: u32,
    /// Prompt tokens that were sent here before.
    pub(crate) claimed: u32,
    /// Tokens that the cache has used since it used those.
    pub(crate) depth: f64,
    /// Expected TTFT before the backend's ratio, in seconds.
    pub(crate) raw: f64,
    /// The pool's dispatch number.
    pub(crate) turn: u64,
}
