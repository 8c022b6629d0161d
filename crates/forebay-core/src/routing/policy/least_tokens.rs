//! Fewest outstanding uncached prompt tokens, then fewest in flight, then chance: the honest simple choice, and about as good
//! as the default where backends are equal and nobody else uses them.
//!
//! Hot path: three passes over the rows, no allocation.

use super::{Policy, least};
use crate::clock::Time;
use crate::routing::candidate::Candidate;
use crate::routing::choice::{Choice, Considered};
use crate::routing::facts::RequestFacts;
use crate::units::grouped;

/// Fewest outstanding prompt tokens.
#[derive(Clone, Copy, Debug)]
pub struct LeastTokens;

impl Policy for LeastTokens {
    fn pick(&self, rows: &[Candidate], _: &RequestFacts, _: Time, rng: &mut fastrand::Rng) -> Option<Choice> {
        least(rows, rng, |row| (row.queued_tokens, row.in_flight()))
    }

    fn cost(&self, row: &Considered) -> f64 {
        row.queued_tokens as f64
    }

    fn least_of(&self, chosen: &Considered) -> String {
        format!("outstanding prompt tokens, {}", grouped(chosen.queued_tokens as f64))
    }

    fn other_has(&self, other: &Considered) -> Option<String> {
        Some(format!("has {}", grouped(other.queued_tokens as f64)))
    }
}
