//! The less loaded of two different backends drawn at random, by own sequences in flight. Costs 12-100 % of p99 against
//! looking at all of them; here for comparison with other balancers.
//!
//! Hot path: two random numbers, no allocation.

use super::Policy;
use crate::clock::Time;
use crate::routing::candidate::Candidate;
use crate::routing::choice::{Choice, Considered, Reason};
use crate::routing::facts::RequestFacts;

/// Power of two choices.
#[derive(Clone, Copy, Debug)]
pub struct P2c;

impl Policy for P2c {
    fn pick(&self, rows: &[Candidate], _: &RequestFacts, _: Time, rng: &mut fastrand::Rng) -> Option<Choice> {
        match rows.len() {
            0 => None,
            1 => Some(Choice { index: 0, reason: Reason::Only }),
            count => {
                let first = rng.usize(..count);
                // An offset of 1 or more gives another row than the first, in one draw and evenly.
                let second = (first + rng.usize(1..count)) % count;
                let index = if rows[second].in_flight() < rows[first].in_flight() { second } else { first };
                Some(Choice { index, reason: Reason::LessOfTwo })
            }
        }
    }

    fn cost(&self, row: &Considered) -> f64 {
        f64::from(row.in_flight())
    }

    fn other_has(&self, other: &Considered) -> Option<String> {
        Some(format!("has {} in flight", other.in_flight()))
    }
}
