//! What a judgement finds, and the measures that judgement and explanation share. Pure.

use super::cause::Cause;
use super::evidence::Evidence;
use crate::rows::row_file::Offered;

/// An arm keeps up with what is offered where its work goes on for at most this share of the run after the last arrival: then
/// an arm twice as fast would have shortened the run by less than a tenth.
pub(super) const KEEPS_UP: f64 = 0.20;
/// From this share on it did not keep up.
pub(super) const FALLS_BEHIND: f64 = 0.28;

/// The finding: a cause, or the candidates, likeliest first; and the reasons why it is not sure.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub(super) cause: Cause,
    pub(super) candidates: Vec<Cause>,
    pub(super) doubts: Vec<String>,
}

impl Found {
    pub(super) fn one(cause: Cause) -> Found {
        Found { cause, candidates: vec![cause], doubts: Vec::new() }
    }

    /// One of these, and not told which, even where there is one alone.
    pub(super) fn open(candidates: &[Cause]) -> Found {
        Found { cause: Cause::Undecided, candidates: candidates.to_vec(), doubts: Vec::new() }
    }

    pub(super) fn between(candidates: &[Cause]) -> Found {
        match candidates {
            [cause] => Found::one(*cause),
            _ => Found::open(candidates),
        }
    }

    /// Returns it as a guess, for these reasons.
    pub(super) fn unsure(self, doubts: Vec<String>) -> Found {
        Found { cause: Cause::Undecided, doubts, ..self }
    }
}

/// The share of the run that went on after the last request was sent; none where requests were not sent at a rate.
pub(super) fn drained(evidence: &Evidence) -> Option<f64> {
    let arrivals_s = match (evidence.offered?, evidence.seen) {
        (Offered::Rate(_) | Offered::Trace(_) | Offered::Traffic, Some(seen)) => seen.arrivals_s,
        (Offered::Rate(rate), None) => evidence.figures.requests.saturating_sub(1) as f64 / rate,
        _ => return None,
    };
    Some(1.0 - arrivals_s / evidence.figures.duration_s)
}
