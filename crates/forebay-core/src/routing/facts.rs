//! What routing knows of one request: numbers and choices, never its text. Made once a request, read at each attempt.
//!
//! Hot path: plain copies, no allocation.

use super::marks::Marks;
use crate::units::BackendId;

/// The place of an arm in its pool's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Deserialize, serde::Serialize)]
pub struct ArmIndex(pub u16);

/// The way in which a request shows its progress, and so what can be measured of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A stream of tokens: the first one ends its prefill and is measured.
    Stream,
    /// One answer with tokens in it: shows no first token and no gaps, so it counts as prefilling to its end and measures
    /// nothing.
    Unary,
    /// One answer without decoding (embeddings, scores): its whole duration is a prefill and is measured as one.
    NoDecode,
    /// Never reaches the engine (tokenize, models): no prompt, no sequence.
    Light,
}

/// The most sequences that one request is counted for: a client's `n` must not make a counter overflow.
pub const MAX_SEQUENCES: u32 = 16_384;

/// The facts of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestFacts {
    /// Estimated prompt tokens of all its prompts together: text bytes / 4, a constant for each image or audio part.
    pub est_tokens: u32,
    /// Sequences that it makes in the engine (`n`, `best_of`, a batch of prompts), as vLLM counts them; at least 1.
    pub sequences: u32,
    /// The way in which it shows its progress.
    pub kind: Kind,
    /// The arm that it was assigned to.
    pub arm: ArmIndex,
    /// The only backend that can serve it (it refers to a response stored there).
    pub pinned: Option<BackendId>,
    /// By what its session and its prompt's beginning are recognised; empty where affinity is off.
    pub marks: Marks,
}

impl RequestFacts {
    /// Sequences in the engine: zero for what never reaches it.
    #[must_use]
    #[inline]
    pub fn engine_sequences(&self) -> u32 {
        match self.kind {
            Kind::Light => 0,
            Kind::Stream | Kind::Unary | Kind::NoDecode => self.sequences.clamp(1, MAX_SEQUENCES),
        }
    }
}
