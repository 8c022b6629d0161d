//! The policies by name. A policy is a function of the rows, the request, the moment and a random number; it keeps nothing.
//! It is given eligible rows only and may choose any of them, so it cannot pick a backend that must not have the request.
//!
//! Hot path: one or two passes over the rows, no allocation.

mod least_inflight;
mod least_tokens;
mod p2c;
mod predicted_ttft;
mod round_robin;

pub use least_inflight::LeastInflight;
pub use least_tokens::LeastTokens;
pub use p2c::P2c;
pub use predicted_ttft::{PredictedTtft, TIE};
pub use round_robin::RoundRobin;

use super::candidate::Candidate;
use super::decision::{Choice, Reason};
use super::facts::RequestFacts;
use crate::clock::Time;

/// Chooses one of the rows.
pub trait Policy: Send + Sync {
    /// The choice; `None` only where there are no rows.
    fn pick(&self, rows: &[Candidate], facts: &RequestFacts, now: Time, rng: &mut fastrand::Rng) -> Option<Choice>;
}

/// A row drawn evenly from those that `qualifies` accepts by their place, of which there are `count`.
fn draw(count: usize, rows: usize, rng: &mut fastrand::Rng, qualifies: impl Fn(usize) -> bool) -> Option<Choice> {
    let nth = if count > 1 { rng.usize(..count) } else { 0 };
    let index = (0..rows).filter(|&index| qualifies(index)).nth(nth)?;
    let reason = match count {
        _ if rows == 1 => Reason::Only,
        1 => Reason::Lowest,
        _ => Reason::Tie(u16::try_from(count).unwrap_or(u16::MAX)),
    };
    Some(Choice { index, reason })
}

/// The row with the least `key`; ties by chance, never by place.
fn least<K: Ord + Copy>(rows: &[Candidate], rng: &mut fastrand::Rng, key: impl Fn(&Candidate) -> K) -> Option<Choice> {
    let least = rows.iter().map(&key).min()?;
    let count = rows.iter().filter(|row| key(row) == least).count();
    draw(count, rows.len(), rng, |index| key(&rows[index]) == least)
}

#[cfg(test)]
mod tests;
