//! The backend that was chosen longest ago. The turn is a number in the row (the pool's dispatch number when the backend was
//! last chosen), so a backend that joins, returns or was skipped is next and the policy keeps no state.
//!
//! Hot path: one pass over the rows, no allocation.

use super::Policy;
use crate::clock::Time;
use crate::routing::candidate::Candidate;
use crate::routing::choice::{Choice, Considered, Reason};
use crate::routing::facts::RequestFacts;

/// In turn.
#[derive(Clone, Copy, Debug)]
pub struct RoundRobin;

impl Policy for RoundRobin {
    fn pick(&self, rows: &[Candidate], _: &RequestFacts, _: Time, _: &mut fastrand::Rng) -> Option<Choice> {
        let (index, _) = rows.iter().enumerate().min_by_key(|(_, row)| row.turn)?;
        Some(Choice { index, reason: if rows.len() == 1 { Reason::Only } else { Reason::Turn } })
    }

    fn other_has(&self, other: &Considered) -> Option<String> {
        Some(format!("has {} in flight", other.in_flight()))
    }
}
