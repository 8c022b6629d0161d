//! Predicted time to the first token of one request on one backend, by its terms. docs/routing.md explains the formula,
//! docs/results.md has the trials behind the constants. Sensitivities are p99 TTFT against an oracle, over the workloads tried.
//!
//! Hot path: about twenty floating point operations, no `exp`, no allocation.

use serde::{Deserialize, Serialize};

use super::candidate::Candidate;
use super::facts::{Kind, RequestFacts};
pub use super::shape::{STEP_BASE, STEP_PER_SEQUENCE, Shape, TOKEN};
use crate::clock::Time;

/// Steps that a request waits for beside its own prefill. Scales with the step time, so that decode load counts. 1.5 gives the
/// same p99 within a point over w1-w13, but lets a backend that slowed down and recovered wait longer for work. Chosen with those
/// workloads in view.
pub const STEPS: f64 = 2.0;
/// Weight of the delay that the prompt puts on the backend's other sequences (wu). 0 costs 12 % where sessions repeat and 15 % of
/// TPOT on mixed speeds; double costs 13 % on mixed speeds.
pub const OTHERS_WEIGHT: f64 = 0.005;
/// Number of requests that are delayed by work that another backend has done already, for each one that waits here now (Little's law:
/// as many will wait behind it as wait now, and more the busier the backend is). The request itself counts as one more.
pub const REDUNDANCY_WEIGHT: f64 = 2.0;
/// Number of times that a block that is evicted is computed again, for each time that it is expected to be wanted: once where it is wanted
/// next, and that evicts another.
pub const EVICTION_WEIGHT: f64 = 2.0;
/// The least uncached prompt, in tokens: a whole prefix hit still computes its last block.
pub const MIN_UNCACHED: u32 = 16;
/// The most of the head's prompt that is taken as done before its first token is seen. 0 costs 3 % on equal backends and gains 5 % on
/// mixed speeds: it breaks no bound either way.
pub const HEAD_CREDIT: f64 = 0.9;
/// Share of the KV room beyond which a request waits for another to end. Matters past the KV wall only (1.06 against 17).
pub const KV_FULL: f64 = 0.97;
/// Completions a second below which the wait for KV room is no longer believed to grow.
pub const MIN_DONE_RATE: f64 = 0.3;

/// Uncached prompt tokens that the request brings: at least `MIN_UNCACHED`, none if it never reaches the engine.
#[must_use]
#[inline]
pub fn uncached(facts: &RequestFacts, matched: u32) -> u32 {
    match facts.kind {
        Kind::Light => 0,
        Kind::Stream | Kind::Unary | Kind::NoDecode => facts.est_tokens.saturating_sub(matched).max(MIN_UNCACHED),
    }
}

/// The predicted TTFT by its terms, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Terms {
    /// TTFT ratio of the backend.
    pub k: f64,
    /// Step time ratio of the backend.
    pub v: f64,
    /// Waiting for the steps under way.
    pub step: f64,
    /// Prompt tokens ahead in the queue.
    pub queue: f64,
    /// The request's own prompt.
    pub prompt: f64,
    /// Waiting for KV room.
    pub kv_wait: f64,
    /// Waiting for one of the sequences that the engine runs at once to end, beyond the wait for KV room.
    #[serde(default)]
    pub slot_wait: f64,
    /// Delay put on the backend's other sequences: part of the score, not of the TTFT.
    pub others: f64,
    /// Delay put on later requests by computing here what another backend holds: part of the score, not of the TTFT.
    pub redundancy: f64,
    /// Work that later requests have to do again, since their blocks are evicted for this prompt's: part of the score.
    pub eviction: f64,
    /// Time expected before `k`: the ticket keeps it, and the measured TTFT is compared with it.
    pub raw: f64,
}

impl Terms {
    /// Predicted seconds to the first token.
    #[must_use]
    #[inline]
    pub fn ttft(&self) -> f64 {
        self.step + self.queue + self.prompt + self.kv_wait + self.slot_wait
    }

    /// The seconds that the policy compares: the predicted TTFT, and what the choice costs other requests. Finite for any input.
    #[must_use]
    #[inline]
    pub fn score(&self) -> f64 {
        let score = self.ttft() + self.others + self.redundancy + self.eviction;
        if score.is_finite() { score } else { f64::MAX }
    }
}

/// Prompt tokens ahead of a new request, in tokens: own and others', less what is taken as done of the head's.
#[must_use]
#[inline]
pub fn ahead(row: &Candidate, now: Time) -> f64 {
    let per_token = row.k * row.shape.token;
    let progress =
        row.head.map_or(0.0, |head| (now.secs_since(head.since) / per_token).min(HEAD_CREDIT * f64::from(head.tokens)));
    (row.queued_tokens as f64 + row.foreign.prompt_tokens - progress).max(0.0)
}

/// Predicts the time to the first token of this request on this backend.
#[must_use]
// A policy asks for the score of every row: inlined there, what it does not need is not computed.
#[inline(always)]
pub fn terms(row: &Candidate, facts: &RequestFacts, now: Time) -> Terms {
    let (k, v, shape) = (row.k, row.v, row.shape);
    let own = f64::from(uncached(facts, row.matched));
    let sequences = f64::from(row.decoding) + row.foreign.running;
    let per_token = k * shape.token;
    // A prompt is computed after those that came before it. What the engine has done of them since is no longer ahead.
    let ahead = ahead(row, now);
    let step = STEPS * v * shape.step(sequences);
    let waiting = f64::from(row.prefilling) + row.foreign.waiting;
    // Past a full KV cache vLLM starts nothing: the wait is for those in front to end, at the rate at which requests
    // end there.
    let kv_wait = match row.kv_capacity {
        Some(room)
            if facts.est_tokens > 0 && row.kv_tokens as f64 + row.foreign.kv_tokens + own > KV_FULL * room as f64 =>
        {
            (waiting + 1.0) / row.done_per_second.max(MIN_DONE_RATE)
        }
        _ => 0.0,
    };
    // A sequence beyond those that the engine runs at once waits for as many to end as are too many.
    let mut slot_wait = 0.0;
    if let Some(limit) = row.running_limit {
        let too_many = sequences + waiting + f64::from(facts.engine_sequences()) - f64::from(limit);
        if too_many > 0.0 && facts.engine_sequences() > 0 {
            slot_wait = (too_many / row.done_per_second.max(MIN_DONE_RATE) - kv_wait).max(0.0);
        }
    }
    // Most rows have neither, so that neither is worth a product.
    let (mut redundancy, mut eviction) = (0.0, 0.0);
    if row.redundant > 0 {
        redundancy = per_token * f64::from(row.redundant) * (1.0 + REDUNDANCY_WEIGHT * waiting);
    }
    if row.evicts > 0.0 {
        eviction = EVICTION_WEIGHT * per_token * own * f64::from(row.evicts);
    }
    Terms {
        k,
        v,
        step: k * step,
        queue: per_token * ahead,
        prompt: per_token * own,
        kv_wait,
        slot_wait,
        others: OTHERS_WEIGHT * sequences * per_token * own,
        redundancy,
        eviction,
        // Without `k`: the ratio is learned from measured over raw, and would otherwise correct itself twice.
        raw: step + shape.token * (ahead + own),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::affinity::Marks;
    use crate::routing::candidate::{Foreign, Head};
    use crate::routing::facts::ArmIndex;
    use crate::units::BackendId;
    use std::time::Duration;

    const NOW: Time = Time::from_micros(10_000_000);

    fn facts(est_tokens: u32) -> RequestFacts {
        RequestFacts {
            est_tokens,
            sequences: 1,
            kind: Kind::Stream,
            arm: ArmIndex(0),
            pinned: None,
            marks: Marks::NONE,
        }
    }

    fn row() -> Candidate {
        Candidate::idle(BackendId(0), 0)
    }

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn the_formula_holds_term_by_term() {
        let row = Candidate {
            k: 2.0,
            v: 3.0,
            decoding: 10,
            queued_tokens: 1000,
            foreign: Foreign { running: 5.0, waiting: 2.0, prompt_tokens: 600.0, kv_tokens: 0.0 },
            ..row()
        };
        let terms = terms(&row, &facts(500), NOW);
        near(terms.step, 2.0 * STEPS * 3.0 * (0.025 + 0.00015 * 15.0));
        near(terms.queue, 2.0 * 0.0001 * 1600.0);
        near(terms.prompt, 2.0 * 0.0001 * 500.0);
        near(terms.others, 0.005 * 15.0 * 2.0 * 0.0001 * 500.0);
        near(terms.raw, STEPS * 3.0 * (0.025 + 0.00015 * 15.0) + 0.0001 * 2100.0);
        near(terms.score(), terms.ttft() + terms.others);
        near(terms.ttft(), 2.0 * terms.raw);
    }

    #[test]
    fn the_prompt_in_progress_is_credited_at_the_measured_speed_up_to_nine_tenths() {
        let head = |ms: u64| Some(Head { since: Time::from_micros(10_000_000 - ms * 1000), tokens: 1000 });
        let queue = |k: f64, ms: u64| {
            let row = Candidate { k, queued_tokens: 1000, head: head(ms), ..row() };
            terms(&row, &facts(100), NOW).queue / (k * TOKEN)
        };
        near(queue(1.0, 30), 700.0);
        near(queue(3.0, 30), 900.0);
        near(queue(1.0, 5000), 100.0);
    }

    #[test]
    fn a_credit_beyond_the_queue_never_makes_it_negative() {
        let head = Some(Head { since: Time::ZERO, tokens: 5000 });
        assert_eq!(terms(&Candidate { queued_tokens: 100, head, ..row() }, &facts(100), NOW).queue, 0.0);
    }

    #[test]
    fn unknown_kv_room_is_neutral_and_a_full_cache_costs_real_seconds() {
        let full = Candidate { kv_tokens: 99_000, prefilling: 3, done_per_second: 2.0, k: 4.0, ..row() };
        assert_eq!(terms(&full, &facts(500), NOW).kv_wait, 0.0);
        let known = Candidate { kv_capacity: Some(100_000), ..full };
        near(terms(&known, &facts(500), NOW).kv_wait, 2.0);
        let others = Foreign { kv_tokens: 98_000.0, waiting: 1.0, ..Foreign::default() };
        let foreign = Candidate { kv_tokens: 0, foreign: others, ..known };
        near(terms(&foreign, &facts(500), NOW).kv_wait, 2.5);
        assert_eq!(terms(&known, &RequestFacts { kind: Kind::Light, ..facts(0) }, NOW).kv_wait, 0.0);
    }

    #[test]
    fn a_place_beyond_the_limit_on_running_sequences_costs_the_wait_for_an_end() {
        let at_limit = Candidate { decoding: 30, prefilling: 1, done_per_second: 4.0, k: 3.0, ..row() };
        assert_eq!(terms(&at_limit, &facts(500), NOW).slot_wait, 0.0);
        let known = Candidate { running_limit: Some(32), ..at_limit };
        assert_eq!(terms(&known, &facts(500), NOW).slot_wait, 0.0, "it is the last that runs");
        let full = Candidate { foreign: Foreign { running: 1.0, waiting: 1.0, ..Foreign::default() }, ..known };
        near(terms(&full, &facts(500), NOW).slot_wait, 2.0 / 4.0);
        near(terms(&full, &facts(500), NOW).ttft() - terms(&full, &facts(500), NOW).raw * 3.0, 2.0 / 4.0);
        // Both waits are for sequences to end, and the same ends serve both.
        let no_room = Candidate { kv_tokens: 99_000, kv_capacity: Some(100_000), ..full };
        let both = terms(&no_room, &facts(500), NOW);
        near(both.kv_wait + both.slot_wait, 3.0 / 4.0);
        assert_eq!(terms(&full, &RequestFacts { kind: Kind::Light, sequences: 0, ..facts(0) }, NOW).slot_wait, 0.0);
    }

    #[test]
    fn speed_is_a_prior_for_every_time() {
        let fast = Candidate { shape: Shape::with_speed(2.0), ..row() };
        near(terms(&fast, &facts(500), NOW).score() * 2.0, terms(&row(), &facts(500), NOW).score());
        assert_eq!(Shape::with_speed(0.0), Shape::PRIOR);
        assert_eq!(Shape::with_speed(f64::NAN), Shape::PRIOR);
    }

    #[test]
    fn what_never_reaches_the_engine_brings_no_prompt() {
        assert_eq!(uncached(&RequestFacts { kind: Kind::Light, ..facts(0) }, 0), 0);
        assert_eq!(uncached(&facts(0), 0), 16);
        assert_eq!(uncached(&facts(500), 480), 20);
        assert_eq!(uncached(&facts(500), 5000), 16);
    }

    #[test]
    fn a_score_is_finite_whatever_the_row_says() {
        let row = Candidate { k: f64::INFINITY, v: f64::NAN, ..row() };
        assert_eq!(terms(&row, &facts(1), NOW + Duration::MAX).score(), f64::MAX);
    }
}
