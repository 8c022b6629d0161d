//! What a claimed token is worth on one backend, learned from the hits that its engine reports.

use crate::clock::Time;
use crate::routing::estimate::decay;

/// Seconds over which reported hits are forgotten (tau): long, since it is a property of the deployment.
pub const WORTH_TAU: f64 = 120.0;
/// Claimed tokens by which the worth leans on 1. Too few, and one eviction would undo a backend's affinity.
pub const WORTH_PRIOR: f64 = 4_000.0;

/// The share of what was claimed of a backend that its engine found: 1 until there is evidence, 0 where it caches nothing. Never
/// below 0, above 1 or NaN. Forgets, so that a backend whose cache is turned on again recovers.
///
/// Hits of requests that claimed nothing (other clients' too) count as well: they can only bring it nearer to 1, which is
/// what it would be if nothing were learned.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Worth {
    claimed: f64,
    hits: f64,
    at: Time,
    /// Claimed since the last report, of prompts that the engine has looked up.
    pending: u64,
    last: Option<Totals>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Totals {
    queries: f64,
    hits: f64,
}

impl Worth {
    /// The engine has worked on a prompt of which so many tokens were claimed.
    #[inline]
    pub fn claimed(&mut self, tokens: u32) {
        self.pending += u64::from(tokens);
    }

    /// The engine's counters of tokens looked up and found. Returns whether they began anew, so that the cache must have too.
    #[inline]
    pub fn report(&mut self, queries: Option<f64>, hits: Option<f64>, now: Time) -> bool {
        let totals = queries.zip(hits).map(|(queries, hits)| Totals { queries, hits });
        let pending = std::mem::take(&mut self.pending);
        let (last, Some(totals)) = (self.last, totals) else { return false };
        self.last = Some(totals);
        let Some(last) = last else { return false };
        // A counter that went back is a server that was started anew, with an empty cache.
        if totals.queries < last.queries || totals.hits < last.hits {
            return true;
        }
        let kept = decay(now.secs_since(self.at), WORTH_TAU);
        self.claimed = self.claimed * kept + pending as f64;
        self.hits = self.hits * kept + (totals.hits - last.hits);
        self.at = self.at.max(now);
        false
    }

    /// The factor on claimed tokens as of `now`, 0 to 1.
    #[must_use]
    #[inline]
    pub fn factor(&self, now: Time) -> f64 {
        if self.claimed == 0.0 {
            return 1.0;
        }
        let kept = decay(now.secs_since(self.at), WORTH_TAU);
        ((self.hits * kept + WORTH_PRIOR) / (self.claimed * kept + WORTH_PRIOR)).min(1.0)
    }
}
