//! What passes between a policy and who asks it: its choice among the rows, and the rows as an explanation shows them to it.
//!
//! Hot path: plain copies.

use serde::{Deserialize, Serialize};

use super::cost::Terms;
use crate::units::BackendId;

/// The way in which the policy came to its choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// There was one candidate.
    Only,
    /// It had the lowest score.
    Lowest,
    /// It was drawn from so many that scored alike.
    Tie(u16),
    /// It was the less loaded of two drawn.
    #[serde(rename = "drawn")]
    LessOfTwo,
    /// It was its turn.
    Turn,
}

impl Reason {
    /// The word in logs and headers.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Reason::Only => "only",
            Reason::Lowest => "lowest",
            Reason::Tie(_) => "tie",
            Reason::LessOfTwo => "drawn",
            Reason::Turn => "turn",
        }
    }
}

/// A policy's answer: a place in the rows that it was given, and how it came to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The place of the chosen row.
    pub index: usize,
    /// The way in which it was chosen.
    pub reason: Reason,
}

/// One row that a decision considered. `forebay explain` reads it from a process that may be older: a field that is added has a default.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Considered {
    /// The backend.
    pub backend: BackendId,
    /// Own sequences without a first token.
    pub prefilling: u32,
    /// Own sequences past their first token.
    pub decoding: u32,
    /// Own uncached prompt tokens that have no first token yet.
    pub queued_tokens: u64,
    /// Prompt tokens ahead of the request, others' included and what is done taken off.
    pub ahead_tokens: f64,
    /// Sequences decoding, own and others'.
    pub running: f64,
    /// Others' sequences that wait there, as last scraped.
    #[serde(default)]
    pub foreign_waiting: f64,
    /// Tokens of the request's prompt that are expected in its prefix cache.
    pub matched: u32,
    /// Tokens of it that it would compute.
    pub uncached: u32,
    /// Skipped because it backs off.
    pub skipped: bool,
    /// Skipped because it is at its limit.
    pub full: bool,
    /// Time that it still backs off, in seconds.
    pub open_for: f64,
    /// The prediction.
    pub terms: Terms,
}

impl Considered {
    /// Own sequences.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.prefilling.saturating_add(self.decoding)
    }
}
