//! Fewest own sequences in flight, ties by chance. Counts requests and not their prompts, so long prompts pile up.
//!
//! Hot path: three passes over the rows, no allocation.

use super::{Policy, least};
use crate::clock::Time;
use crate::routing::candidate::Candidate;
use crate::routing::choice::{Choice, Considered};
use crate::routing::facts::RequestFacts;

/// Fewest in flight.
#[derive(Clone, Copy, Debug)]
pub struct LeastInflight;

impl Policy for LeastInflight {
    fn pick(&self, rows: &[Candidate], _: &RequestFacts, _: Time, rng: &mut fastrand::Rng) -> Option<Choice> {
        least(rows, rng, Candidate::in_flight)
    }

    fn cost(&self, row: &Considered) -> f64 {
        f64::from(row.in_flight())
    }

    fn least_of(&self, chosen: &Considered) -> String {
        format!("requests in flight, {}", chosen.in_flight())
    }

    fn other_has(&self, other: &Considered) -> Option<String> {
        Some(format!("has {}", other.in_flight()))
    }
}
