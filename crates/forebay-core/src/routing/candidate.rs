//! One backend as a policy sees it: a row of numbers as of one moment. A policy sees nothing else, so whatever it decides can
//! be written down and decided again.
//!
//! Hot path: copied by value, no allocation.

use std::time::Duration;

use serde::Serialize;

use super::estimate::{self, Evidence};
use super::shape::Shape;
use crate::clock::Time;
use crate::units::BackendId;

/// Tokens of an engine's block where the engine does not say: vLLM's default on a GPU. Only whole blocks are found again.
pub const BLOCK: u32 = 16;

/// Load that others put on the backend: what vLLM reports beyond what this proxy sent. All zero where no fresh scrape says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Foreign {
    /// Sequences running (`fr`).
    pub running: f64,
    /// Sequences waiting (`fw`).
    pub waiting: f64,
    /// Prompt tokens of those waiting, estimated.
    pub prompt_tokens: f64,
    /// Tokens in the KV cache.
    pub kv_tokens: f64,
}

/// The oldest request here without a first token: the one that the engine is prefilling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Head {
    /// Time at which the engine can have begun on it: its dispatch, or the last first token of this backend if that was later.
    pub since: Time,
    /// Its uncached prompt tokens.
    pub tokens: u32,
}

/// One backend's row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// The backend.
    pub id: BackendId,
    /// Its place among its pool's members.
    pub member: u16,
    /// Own sequences without a first token (`p`).
    pub prefilling: u32,
    /// Own sequences past their first token (`n`).
    pub decoding: u32,
    /// Own uncached prompt tokens that have no first token yet, those in prefill included (`q`). Others' are in `foreign`.
    pub queued_tokens: u64,
    /// Own tokens in the KV cache, estimated: prompts, from their dispatch to their end, and tokens seen.
    pub kv_tokens: u64,
    /// Room of the KV cache in tokens; `None` where unknown, which is neutral.
    pub kv_capacity: Option<u64>,
    /// The most sequences that the engine runs at once, as learned; `None` where it was never seen to stop there.
    pub running_limit: Option<u32>,
    /// Others' load.
    pub foreign: Foreign,
    /// The request that is being prefilled.
    pub head: Option<Head>,
    /// Sequences completed a second.
    pub done_per_second: f64,
    /// Measured TTFT beside what was expected, in seconds.
    pub ttft: Evidence,
    /// Trust in that ratio, 0 to 1: the share of it that stands for the backend and not for its pool.
    pub ttft_trust: f64,
    /// Measured gaps beside expected step times, in seconds.
    pub gap: Evidence,
    /// `gap` forgotten slowly: this backend's part of the pool's ratio.
    pub gap_slow: Evidence,
    /// TTFT ratio (`k`): 1 is as expected, 2 twice as slow.
    pub k: f64,
    /// Step time ratio (`v`).
    pub v: f64,
    /// Expected times before anything is measured.
    pub shape: Shape,
    /// Tokens of a block of its KV cache.
    pub block_tokens: u32,
    /// Worth of a claimed token, 0 to 1, as learned from the hits that the engine reports.
    pub worth: f64,
    /// Tokens of this request's prompt that were sent to the backend before; 0 where nothing is known.
    pub claimed: u32,
    /// Tokens that its cache has used since it used the claimed ones.
    pub depth: f64,
    /// Tokens of this request's prompt that the backend is expected to find in its prefix cache: claimed ones at their worth.
    pub matched: u32,
    /// Tokens of the prompt that it would compute although another row's backend is expected to find them.
    pub redundant: u32,
    /// Measure of how much sooner than elsewhere the evicted would have been used again: 0 where nothing is evicted, or what
    /// was unused the longest; 1 where it was used just now.
    pub evicts: f32,
    /// Blamed failures, one for each open period, since the last success.
    pub fails: u32,
    /// For how much longer the backend is left alone.
    pub open_for: Duration,
    /// An attempt sent after the last failure is still out.
    pub probing: bool,
    /// The pool's dispatch number when this backend was last chosen; 0 = never.
    pub turn: u64,
}

impl Candidate {
    /// A backend that has nothing to do and of which nothing is known.
    #[must_use]
    #[inline]
    pub fn idle(id: BackendId, member: u16) -> Candidate {
        Candidate {
            id,
            member,
            prefilling: 0,
            decoding: 0,
            queued_tokens: 0,
            kv_tokens: 0,
            kv_capacity: None,
            running_limit: None,
            foreign: Foreign::default(),
            head: None,
            done_per_second: 0.0,
            ttft: Evidence::default(),
            ttft_trust: 1.0,
            gap: Evidence::default(),
            gap_slow: Evidence::default(),
            k: 1.0,
            v: 1.0,
            shape: Shape::PRIOR,
            block_tokens: BLOCK,
            worth: 1.0,
            claimed: 0,
            depth: 0.0,
            matched: 0,
            redundant: 0,
            evicts: 0.0,
            fails: 0,
            open_for: Duration::ZERO,
            probing: false,
            turn: 0,
        }
    }

    /// Own sequences in flight.
    #[must_use]
    #[inline]
    pub fn in_flight(&self) -> u32 {
        self.prefilling.saturating_add(self.decoding)
    }

    /// Left alone after a failure or for backpressure, or half-open with its one probe out.
    #[must_use]
    #[inline]
    pub fn backing_off(&self) -> bool {
        self.open_for > Duration::ZERO || (self.fails > 0 && self.probing)
    }
}

/// The ratios assumed for a backend of the pool where nothing of its own says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PoolRatios {
    /// TTFT ratio of the pool.
    pub k: f64,
    /// Step time ratio of the pool.
    pub v: f64,
}

/// The decayed evidence of several backends together.
#[derive(Clone, Copy, Debug, Default)]
pub struct PoolEvidence {
    ttft: Evidence,
    gap: Evidence,
}

impl PoolEvidence {
    /// Adds what one backend has shown.
    #[inline]
    pub fn add(&mut self, row: &Candidate) {
        self.ttft = self.ttft.plus(row.ttft);
        self.gap = self.gap.plus(row.gap_slow);
    }

    /// Returns what a backend without samples is taken for.
    #[must_use]
    #[inline]
    pub fn ratios(self) -> PoolRatios {
        PoolRatios { k: estimate::pool_ttft_ratio(self.ttft), v: estimate::pool_gap_ratio(self.gap) }
    }
}

impl PoolRatios {
    /// From the evidence of these rows: give it eligible backends.
    #[must_use]
    pub fn of<'a>(rows: impl IntoIterator<Item = &'a Candidate>) -> PoolRatios {
        let mut evidence = PoolEvidence::default();
        rows.into_iter().for_each(|row| evidence.add(row));
        evidence.ratios()
    }

    /// Fills `k` and `v` of every row: its own evidence, leaning on the pool's.
    #[inline]
    pub fn fill(self, rows: &mut [Candidate]) {
        for row in rows {
            row.k = self.k + row.ttft_trust * (row.ttft.ratio(self.k, estimate::TTFT_PRIOR) - self.k);
            row.v = row.gap.ratio(self.v, estimate::GAP_PRIOR);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u32) -> Candidate {
        Candidate::idle(BackendId(id), 0)
    }

    #[test]
    fn a_backend_without_samples_is_taken_for_the_pool() {
        let mut rows = [row(0), row(1), row(2)];
        rows[0].ttft = Evidence { measured: 20.0, expected: 10.0 };
        rows[1].ttft = Evidence { measured: 60.0, expected: 10.0 };
        PoolRatios::of(&rows).fill(&mut rows);
        let pool = 80.0 / 20.0;
        assert!((rows[2].k - pool).abs() < 1e-9);
        assert!(rows[0].k < pool && rows[1].k > pool);
        assert!((rows[0].k - (20.0 + pool) / 11.0).abs() < 1e-9);
    }

    #[test]
    fn with_no_samples_at_all_every_ratio_is_one() {
        let mut rows = [row(0), row(1)];
        PoolRatios::of(&rows).fill(&mut rows);
        assert!(rows.iter().all(|row| row.k == 1.0 && row.v == 1.0));
    }

    #[test]
    fn a_half_open_backend_takes_one_probe() {
        let mut half_open = row(0);
        half_open.fails = 1;
        assert!(!half_open.backing_off());
        half_open.probing = true;
        assert!(half_open.backing_off());
        half_open.fails = 0;
        assert!(!half_open.backing_off(), "after a success many attempts may be out");
    }
}
