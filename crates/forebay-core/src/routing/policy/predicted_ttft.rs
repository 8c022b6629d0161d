//! The default: the backend with the least predicted TTFT, over all of them; within 2 % of the least, by chance.
//! Where nothing is measured (a pool without streams) it acts as `least_tokens`, and the decision says so.
//!
//! Hot path: at 16 backends about 0.1 µs; no allocation: scores are kept on the stack, in as much of it as the pool's size needs,
//! and those past a thousand are computed twice.

use super::{Policy, draw};
use crate::clock::Time;
use crate::routing::candidate::Candidate;
use crate::routing::cost;
use crate::routing::choice::{Choice, Reason};
use crate::routing::facts::RequestFacts;

/// Scores within this share of the least one count as equal. 0 and 4 % differ by at most 3 % in p99.
pub const TIE: f64 = 0.02;

/// Scores kept on the stack for a pool of few backends: clearing room for many costs more than such a pick.
const FEW: usize = 16;
/// Scores kept on the stack for a pool of some.
const SOME: usize = 128;
/// Scores kept on the stack for a pool of more.
const MANY: usize = 1024;

/// Least predicted TTFT.
#[derive(Clone, Copy, Debug)]
pub struct PredictedTtft;

impl Policy for PredictedTtft {
    fn pick(&self, rows: &[Candidate], facts: &RequestFacts, now: Time, rng: &mut fastrand::Rng) -> Option<Choice> {
        if rows.len() <= FEW {
            pick_keeping::<FEW>(rows, facts, now, rng)
        } else if rows.len() <= SOME {
            pick_keeping::<SOME>(rows, facts, now, rng)
        } else {
            pick_keeping::<MANY>(rows, facts, now, rng)
        }
    }

    fn predicts(&self) -> bool {
        true
    }
}

fn pick_keeping<const KEPT: usize>(
    rows: &[Candidate],
    facts: &RequestFacts,
    now: Time,
    rng: &mut fastrand::Rng,
) -> Option<Choice> {
    let mut kept = [0.0_f64; KEPT];
    let mut least = f64::MAX;
    for (index, row) in rows.iter().enumerate() {
        let score = cost::terms(row, facts, now).score();
        if let Some(slot) = kept.get_mut(index) {
            *slot = score;
        }
        // Without a branch: which row has the least is not to be foreseen.
        least = least.min(score);
    }
    // Predictions are no better than this. Without a tie, equal backends would be filled in the order of their places.
    let limit = least * (1.0 + TIE);
    let ties = |index: usize| match kept.get(index) {
        // Scores that were not kept are computed again: rare, and cheaper than memory for every pool's largest case.
        Some(score) => *score <= limit,
        None => cost::terms(&rows[index], facts, now).score() <= limit,
    };
    let (mut count, mut last) = (0, 0);
    for (index, score) in kept.iter().take(rows.len()).enumerate() {
        if *score <= limit {
            (count, last) = (count + 1, index);
        }
    }
    for index in (KEPT..rows.len()).filter(|&index| ties(index)) {
        (count, last) = (count + 1, index);
    }
    // The usual end, without a second look for the row.
    if count == 1 && rows.len() > 1 {
        return Some(Choice { index: last, reason: Reason::Lowest });
    }
    draw(count, rows.len(), rng, ties)
}
