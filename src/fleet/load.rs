//! What one backend has to do, as far as this proxy knows: own counters, latency estimators, back-off, and the last scrape.
//! Updated in place by tickets and the scraper; survives every change of the snapshot that keeps the backend.
//!
//! Hot path: one short mutex, a few additions; no allocation (but when a queue grows past its longest). Never held across
//! anything that waits.

use std::sync::Mutex;
use std::time::Duration;

use super::backoff::Backoff;
use super::locked;
use super::prefill::{PrefillQueue, Waiting};
use super::sample::Sample;
use super::view::{LoadView, ScrapeView};
use crate::clock::Time;
use crate::error::{Blame, Failure};
use crate::routing::candidate::{Candidate, Foreign, Head};
use crate::routing::cost::Shape;
use crate::routing::estimate::{DecayedRate, DecayedRatio, GAP_POOL_TAU, GAP_TAU, TTFT_TAU};
use crate::routing::facts::Kind;
use crate::units::BackendId;

/// The load of one backend.
#[derive(Debug)]
pub struct Load(Mutex<Numbers>);

#[derive(Debug)]
struct Numbers {
    shape: Shape,
    stale_after: Duration,
    /// Attempts open, those that never reach the engine included.
    open: u32,
    prefilling: u32,
    decoding: u32,
    queued_tokens: u64,
    kv_tokens: u64,
    waiting: PrefillQueue,
    last_first_token: Time,
    ttft: DecayedRatio,
    gap: DecayedRatio,
    done: DecayedRate,
    backoff: Backoff,
    /// The number of the next attempt.
    next: u64,
    turn: u64,
    scrape: Option<Scrape>,
    scrape_failures: u32,
}

/// The last good scrape and what it left over for others at that instant.
#[derive(Clone, Copy, Debug)]
struct Scrape {
    sample: Sample,
    at: Time,
    stale_at: Time,
    running: f64,
    waiting: f64,
    kv_tokens: f64,
}

/// Where an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Prefill,
    Decode,
}

/// What one attempt holds of a load: the same numbers are given back as were taken.
#[derive(Debug)]
pub(super) struct Lease {
    attempt: u64,
    phase: Phase,
    kind: Kind,
    /// The number in the prefill queue.
    queued: u64,
    sequences: u32,
    tokens: u32,
    kv_tokens: u64,
    raw: f64,
    dispatched: Time,
    last_event: Time,
}

/// What an attempt brings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// Sequences in the engine; 0 for what never reaches it.
    pub(super) sequences: u32,
    /// Uncached prompt tokens.
    pub(super) tokens: u32,
    /// Prompt tokens, cached or not.
    pub(super) prompt: u32,
    /// Expected TTFT before the backend's ratio, in seconds.
    pub(super) raw: f64,
    /// The pool's dispatch number.
    pub(super) turn: u64,
}

impl Load {
    /// Nothing to do and nothing known. `speed` is the operator's prior; scrapes older than `stale_after` count as absent.
    #[must_use]
    pub fn new(speed: f64, stale_after: Duration) -> Load {
        Load(Mutex::new(Numbers {
            shape: Shape::with_speed(speed),
            stale_after,
            open: 0,
            prefilling: 0,
            decoding: 0,
            queued_tokens: 0,
            kv_tokens: 0,
            waiting: PrefillQueue::new(),
            last_first_token: Time::ZERO,
            ttft: DecayedRatio::default(),
            gap: DecayedRatio::default(),
            done: DecayedRate::default(),
            backoff: Backoff::default(),
            next: 0,
            turn: 0,
            scrape: None,
            scrape_failures: 0,
        }))
    }

    /// Takes over a changed configuration; what was measured stays, as a ratio to the old prior until it is forgotten.
    pub(super) fn retune(&self, speed: f64, stale_after: Duration) {
        let mut numbers = locked(&self.0);
        numbers.shape = Shape::with_speed(speed);
        numbers.stale_after = stale_after;
    }

    /// The row of this backend. `mean_prompt` is what a foreign waiting request is taken for, in tokens.
    pub(super) fn row(&self, id: BackendId, member: u16, mean_prompt: f64, now: Time) -> Candidate {
        let numbers = locked(&self.0);
        let scrape = numbers.fresh(now);
        Candidate {
            id,
            member,
            prefilling: numbers.prefilling,
            decoding: numbers.decoding,
            queued_tokens: numbers.queued_tokens,
            kv_tokens: numbers.kv_tokens,
            kv_capacity: scrape.and_then(|scrape| scrape.sample.kv_capacity_tokens),
            foreign: scrape.map_or(Foreign::default(), |scrape| Foreign {
                running: scrape.running,
                waiting: scrape.waiting,
                prompt_tokens: scrape.waiting * mean_prompt,
                kv_tokens: scrape.kv_tokens,
            }),
            head: numbers.head(),
            done_per_second: numbers.done.read(now),
            ttft: numbers.ttft.read(now, TTFT_TAU),
            gap: numbers.gap.read(now, GAP_TAU),
            gap_slow: numbers.gap.read(now, GAP_POOL_TAU),
            k: 1.0,
            v: 1.0,
            shape: numbers.shape,
            // Prefix affinity is another issue's; until then no row claims a cached token.
            matched: 0,
            fails: numbers.backoff.fails(),
            open_for: numbers.backoff.open_for(now),
            probing: numbers.backoff.probing(),
            turn: numbers.turn,
        }
    }

    /// An attempt goes out. What it takes is given back by `end`, through the lease.
    pub(super) fn enter(&self, entry: Entry, now: Time) -> Lease {
        let mut numbers = locked(&self.0);
        let attempt = numbers.next;
        numbers.next += 1;
        numbers.turn = entry.turn;
        numbers.open += 1;
        numbers.backoff.enter();
        let engine = entry.sequences > 0;
        let mut queued = u64::MAX;
        if engine {
            numbers.prefilling += entry.sequences;
            numbers.queued_tokens += u64::from(entry.tokens);
            numbers.kv_tokens += u64::from(entry.prompt);
            queued = numbers.waiting.enter(Waiting { since: now, tokens: entry.tokens });
        }
        Lease {
            attempt,
            phase: Phase::Prefill,
            kind: entry.kind,
            queued,
            sequences: entry.sequences,
            tokens: if engine { entry.tokens } else { 0 },
            kv_tokens: if engine { u64::from(entry.prompt) } else { 0 },
            raw: entry.raw,
            dispatched: now,
            last_event: now,
        }
    }

    /// The first token of a stream: prefill is over and measured. Nothing for other kinds, which show none.
    pub(super) fn first_token(&self, lease: &mut Lease, now: Time) {
        if lease.kind != Kind::Stream || lease.phase == Phase::Decode {
            return;
        }
        let mut numbers = locked(&self.0);
        numbers.end_prefill(lease);
        numbers.decoding += lease.sequences;
        lease.phase = Phase::Decode;
        lease.last_event = now;
        numbers.last_first_token = numbers.last_first_token.max(now);
        numbers.ttft.observe(now.secs_since(lease.dispatched), lease.raw, now, TTFT_TAU);
        numbers.backoff.success(lease.attempt);
    }

    /// A later event of a stream. Its gap is a step time if the client was reading and the attempt is one sequence (several
    /// take turns in one step).
    pub(super) fn event(&self, lease: &mut Lease, now: Time, client_blocked: bool) {
        if lease.phase != Phase::Decode {
            return;
        }
        let mut numbers = locked(&self.0);
        numbers.kv_tokens += 1;
        lease.kv_tokens += 1;
        if !client_blocked && lease.sequences == 1 {
            let foreign = numbers.fresh(now).map_or(0.0, |scrape| scrape.running);
            let step = numbers.shape.step(f64::from(numbers.decoding) + foreign);
            numbers.gap.observe(now.secs_since(lease.last_event), step, now, GAP_TAU);
        }
        lease.last_event = now;
    }

    /// The attempt succeeded.
    pub(super) fn succeed(&self, lease: &Lease, now: Time) {
        let mut numbers = locked(&self.0);
        numbers.done.observe(lease.sequences, now);
        numbers.backoff.success(lease.attempt);
        if lease.kind == Kind::NoDecode {
            numbers.ttft.observe(now.secs_since(lease.dispatched), lease.raw, now, TTFT_TAU);
        }
    }

    /// The attempt failed. Never touches the latency estimators: an error is no fast answer.
    pub(super) fn fail(&self, failure: Failure, now: Time) {
        let mut numbers = locked(&self.0);
        let next = numbers.next;
        match failure.blame() {
            Blame::Backend => numbers.backoff.failure(now, next),
            Blame::Backpressure(pause) => numbers.backoff.busy(pause, now),
            Blame::Misconfigured | Blame::Nobody => {}
        }
    }

    /// Gives back what the attempt took. Needs no time, so that a drop can do it.
    pub(super) fn end(&self, lease: &Lease) {
        let mut numbers = locked(&self.0);
        match lease.phase {
            Phase::Prefill => numbers.end_prefill(lease),
            Phase::Decode => numbers.decoding -= lease.sequences,
        }
        numbers.kv_tokens -= lease.kv_tokens;
        numbers.open -= 1;
        numbers.backoff.leave(lease.attempt);
    }

    /// A scrape came in. What it shows beyond our own in-flight *at this instant* is others' load, until it is stale.
    pub fn set_sample(&self, sample: Sample, now: Time) {
        let sane = |value: Option<f64>| value.filter(|value| value.is_finite() && *value >= 0.0);
        let sample = Sample {
            running: sane(sample.running),
            waiting: sane(sample.waiting),
            kv_usage: sane(sample.kv_usage).filter(|usage| *usage <= 1.0),
            kv_capacity_tokens: sample.kv_capacity_tokens.filter(|room| *room > 0),
            ..sample
        };
        let mut numbers = locked(&self.0);
        let (prefilling, decoding) = (f64::from(numbers.prefilling), f64::from(numbers.decoding));
        let (mut running, mut waiting) = (0.0, 0.0);
        // Both or nothing: half of the truth set against all of our own would hide others' load or invent some.
        if let (Some(all_running), Some(all_waiting)) = (sample.running, sample.waiting) {
            let foreign = (all_running + all_waiting - prefilling - decoding).max(0.0);
            waiting = foreign.min((all_waiting - prefilling).max(0.0));
            running = foreign - waiting;
        }
        let kv_tokens = match (sample.kv_usage, sample.kv_capacity_tokens) {
            (Some(usage), Some(room)) => (usage * room as f64 - numbers.kv_tokens as f64).max(0.0),
            _ => 0.0,
        };
        numbers.scrape =
            Some(Scrape { sample, at: now, stale_at: now + numbers.stale_after, running, waiting, kv_tokens });
        numbers.scrape_failures = 0;
    }

    /// A scrape failed. The last good one stays until it is stale.
    pub fn scrape_failed(&self, _now: Time) {
        let mut numbers = locked(&self.0);
        numbers.scrape_failures = numbers.scrape_failures.saturating_add(1);
    }

    /// Every number that the router sees, and the scrape behind them.
    #[must_use]
    pub fn view(&self, now: Time) -> LoadView {
        let numbers = locked(&self.0);
        let head = numbers.head();
        let fresh = numbers.fresh(now);
        LoadView {
            open_attempts: numbers.open,
            prefilling: numbers.prefilling,
            decoding: numbers.decoding,
            queued_prompt_tokens: numbers.queued_tokens,
            kv_tokens: numbers.kv_tokens,
            head_for_seconds: head.map(|head| now.secs_since(head.since)),
            head_tokens: head.map(|head| head.tokens),
            foreign_running: fresh.map_or(0.0, |scrape| scrape.running),
            foreign_waiting: fresh.map_or(0.0, |scrape| scrape.waiting),
            foreign_kv_tokens: fresh.map_or(0.0, |scrape| scrape.kv_tokens),
            completions_per_second: numbers.done.read(now),
            fails: numbers.backoff.fails(),
            open_for_seconds: numbers.backoff.open_for(now).as_secs_f64(),
            probing: numbers.backoff.probing(),
            scrape_failures: numbers.scrape_failures,
            scrape: numbers.scrape.map(|scrape| ScrapeView {
                age_seconds: now.secs_since(scrape.at),
                stale: fresh.is_none(),
                queue_depth: scrape.sample.waiting,
                sample: scrape.sample,
            }),
        }
    }
}

impl Numbers {
    /// The last scrape, unless it is too old to be believed.
    fn fresh(&self, now: Time) -> Option<&Scrape> {
        self.scrape.as_ref().filter(|scrape| now <= scrape.stale_at)
    }

    fn head(&self) -> Option<Head> {
        let head = self.waiting.head()?;
        Some(Head { since: head.since.max(self.last_first_token), tokens: head.tokens })
    }

    fn end_prefill(&mut self, lease: &Lease) {
        self.prefilling -= lease.sequences;
        self.queued_tokens -= u64::from(lease.tokens);
        if lease.sequences > 0 {
            self.waiting.leave(lease.queued);
        }
    }
}

#[cfg(test)]
mod tests;
