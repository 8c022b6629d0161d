//! Fewest outstanding uncached prompt tokens, then fewest in flight, then chance: the honest simple choice, and about as good
//! as the default where backends are equal and nobody else uses them.
//!
//! Hot path: three passes over the rows, no allocation.

use super::{Policy, least};
use crate::clock::Time;
use crate::routing::candidate::Candidate;
use crate::routing::decision::Choice;
use crate::routing::facts::RequestFacts;

/// Fewest outstanding prompt tokens.
#[derive(Clone, Copy, Debug)]
pub struct LeastTokens;

impl Policy for LeastTokens {
    fn pick(&self, rows: &[Candidate], _: &RequestFacts, _: Time, rng: &mut fastrand::Rng) -> Option<Choice> {
        least(rows, rng, |row| (row.queued_tokens, row.in_flight()))
    }
}
