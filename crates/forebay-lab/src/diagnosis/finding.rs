//! What a judgement finds, and the measures that judgement and explanation share. Pure.

use super::cause::Cause;
use super::evidence::{Evidence, RequestFigures};
use super::servers::Servers;
use crate::rows::row_file::Offered;

/// An arm keeps up with what is offered where its work goes on for at most this share of the run after the last arrival: then
/// an arm twice as fast would have shortened the run by less than a tenth.
pub(super) const KEEPS_UP: f64 = 0.20;
/// From this share on it did not keep up.
pub(super) const FALLS_BEHIND: f64 = 0.28;

/// The finding: a cause, or the candidates; and, where it could be told, each one's share of the time.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub(super) cause: Cause,
    pub(super) candidates: Vec<Cause>,
    pub(super) share: Vec<(Cause, f64)>,
}

impl Found {
    pub(super) fn one(cause: Cause) -> Found {
        Found { cause, candidates: vec![cause], share: Vec::new() }
    }

    pub(super) fn between(candidates: &[Cause]) -> Found {
        match candidates {
            [cause] => Found::one(*cause),
            _ => Found { cause: Cause::Undecided, candidates: candidates.to_vec(), share: Vec::new() },
        }
    }
}

/// The share of the run for which the servers had made their last token, and that of the open requests that were answered.
pub(super) fn unread(seen: &RequestFigures, servers: &Servers, duration_s: f64) -> (f64, f64) {
    let done = servers.last_token_s.map_or(0.0, |last| (1.0 - last / duration_s).max(0.0));
    // The looks cover a little more than the run, and miss what happened between two of them.
    let missed = 2.0 * servers.look_s / duration_s;
    let stale = if seen.open > 0.0 { 1.0 - (servers.running + servers.waiting) / seen.open - missed } else { 0.0 };
    (done, stale.max(0.0))
}

/// The share of the run that went on after the last request was sent; none where requests were not sent at a rate.
pub(super) fn drained(evidence: &Evidence) -> Option<f64> {
    let arrivals_s = match (evidence.offered?, evidence.seen) {
        (Offered::Rate(_) | Offered::Trace(_), Some(seen)) => seen.arrivals_s,
        (Offered::Rate(rate), None) => evidence.figures.requests.saturating_sub(1) as f64 / rate,
        _ => return None,
    };
    Some(1.0 - arrivals_s / evidence.figures.duration_s)
}
