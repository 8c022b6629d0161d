//! The numbers of one backend: own counters, latency estimators, back-off, and the last scrape. No lock of its own: whoever calls
//! has the pool's.
//!
//! Hot path: a few additions; no allocation (but when a queue grows past its longest).

use std::time::Duration;

use super::backoff::Backoff;
use super::departed::Departed;
use super::lease::{Lease, LeaseRequest, Phase};
use super::prefill::{PrefillQueue, QueuedPrompt};
use super::running_limit::RunningLimit;
use super::scrape::{Own, Scrape};
use super::view::{LoadView, ScrapeView};
use crate::health::watchdog::differs;
use forebay_core::clock::Time;
use forebay_core::error::{Blame, Failure};
use forebay_core::routing::affinity::Worth;
use forebay_core::routing::candidate::{BLOCK, Candidate, Foreign, Head};
use forebay_core::routing::cost::Shape;
use forebay_core::routing::estimate::{DecayedRate, DecayedRatio, GAP_POOL_TAU, GAP_TAU, TtftRatio};
use forebay_core::routing::facts::Kind;
use forebay_core::sample::Sample;
use forebay_core::units::BackendId;

/// The load of one backend.
#[derive(Debug)]
pub(crate) struct LoadState {
    pub(super) shape: Shape,
    pub(super) stale_after: Duration,
    /// Attempts open, those that never reach the engine included.
    pub(super) open: u32,
    pub(super) prefilling: u32,
    pub(super) decoding: u32,
    /// Attempts that make more sequences than the pool lets one backend have.
    pub(super) oversized: u32,
    pub(super) queued_tokens: u64,
    pub(super) kv_tokens: u64,
    pub(super) waiting: PrefillQueue,
    /// Attempts that are no longer watched.
    pub(super) departed: Departed,
    pub(super) last_first_token: Time,
    /// Uncached prompt tokens of all streams that got their first token.
    pub(super) prefilled: u64,
    pub(super) ttft: TtftRatio,
    pub(super) gap: DecayedRatio,
    pub(super) done: DecayedRate,
    pub(super) backoff: Backoff,
    /// Tokens that it has generated for requests from here.
    pub(super) generated: u64,
    pub(super) worth: Worth,
    pub(super) served: Option<Kind>,
    pub(super) progress: u64,
    /// Attempts on the engine, and those of them whose clients do not read.
    pub(super) engaged: u32,
    pub(super) paused: u32,
    /// Those of both that are streams.
    pub(super) engaged_streams: u32,
    pub(super) paused_streams: u32,
    /// The number of the next attempt.
    pub(super) next: u64,
    pub(super) turn: u64,
    pub(super) scrape: Option<Scrape>,
    pub(super) running_limit: RunningLimit,
    pub(super) scrape_failures: u32,
    /// The last scrape whose figures were others than those of the one before.
    pub(super) moved: Option<Time>,
}

impl LoadState {
    /// Nothing to do and nothing known. `speed` is the operator's prior; scrapes older than `stale_after` count as absent.
    pub(crate) fn new(speed: f64, stale_after: Duration) -> LoadState {
        LoadState {
            shape: Shape::with_speed(speed),
            stale_after,
            open: 0,
            prefilling: 0,
            decoding: 0,
            oversized: 0,
            queued_tokens: 0,
            kv_tokens: 0,
            waiting: PrefillQueue::new(),
            departed: Departed::default(),
            last_first_token: Time::ZERO,
            prefilled: 0,
            ttft: TtftRatio::default(),
            gap: DecayedRatio::default(),
            done: DecayedRate::default(),
            backoff: Backoff::default(),
            generated: 0,
            worth: Worth::default(),
            served: None,
            progress: 0,
            engaged: 0,
            paused: 0,
            engaged_streams: 0,
            paused_streams: 0,
            next: 0,
            turn: 0,
            scrape: None,
            running_limit: RunningLimit::default(),
            scrape_failures: 0,
            moved: None,
        }
    }

    /// Takes over a changed configuration.
    pub(super) fn retune(&mut self, speed: f64, stale_after: Duration) {
        self.shape = Shape::with_speed(speed);
        self.stale_after = stale_after;
    }

    /// The row of this backend. `mean_prompt` is what a foreign waiting request is taken for, in tokens; `lived` is `now` in the
    /// pool's time.
    #[inline]
    pub(crate) fn row(&self, id: BackendId, member: u16, mean_prompt: f64, now: Time, lived: Time) -> Candidate {
        let scrape = self.fresh(now);
        let (departed, departed_kv) = self.departed.counted(now, self.stale_after);
        Candidate {
            id,
            member,
            prefilling: self.prefilling,
            decoding: self.decoding.saturating_add(departed),
            queued_tokens: self.queued_tokens,
            kv_tokens: self.kv_tokens.saturating_add(departed_kv),
            kv_capacity: scrape.and_then(|scrape| scrape.sample.kv_capacity_tokens),
            // A fact of the engine's command line, so that it holds without a fresh scrape.
            running_limit: self.running_limit.known(),
            foreign: scrape.map_or(Foreign::default(), |scrape| Foreign {
                running: scrape.running,
                waiting: scrape.waiting,
                prompt_tokens: scrape.waiting * mean_prompt,
                kv_tokens: scrape.kv_tokens,
            }),
            head: self.head(),
            done_per_second: self.done.read(now),
            ttft: self.ttft.read(lived),
            ttft_trust: self.ttft.trust(lived),
            gap: self.gap.read(now, GAP_TAU),
            gap_slow: self.gap.read(now, GAP_POOL_TAU),
            shape: self.shape,
            block_tokens: scrape.and_then(|scrape| scrape.sample.kv_block_tokens).unwrap_or(BLOCK),
            // Without a fresh scrape nothing says that a claim is wrong.
            worth: scrape.map_or(1.0, |_| self.worth.factor(now)),
            fails: self.backoff.pauses(),
            open_for: self.backoff.open_for(now),
            probing: self.backoff.probing(),
            turn: self.turn,
            ..Candidate::idle(id, member)
        }
    }

    /// Tokens that it has generated for requests from here.
    pub(crate) fn generated(&self) -> u64 {
        self.generated
    }

    /// Own sequences in flight.
    pub(crate) fn in_flight(&self) -> u32 {
        self.prefilling.saturating_add(self.decoding)
    }

    /// Returns whether the backend has a request that makes more sequences than the pool lets one backend have.
    pub(crate) fn has_oversized(&self) -> bool {
        self.oversized > 0
    }

    /// For how much longer the backend is left alone.
    pub(crate) fn open_for(&self, now: Time) -> Duration {
        self.backoff.open_for(now)
    }

    /// An attempt goes out. What it takes is given back by `end`, through the lease.
    pub(crate) fn enter(&mut self, entry: LeaseRequest, now: Time, lived: Time) -> Lease {
        // The age of a backend counts from its first request: while it is young, what is measured of it is soon
        // forgotten.
        self.ttft.dispatch(lived);
        let attempt = self.next;
        self.next += 1;
        self.turn = entry.turn;
        self.open += 1;
        self.backoff.enter();
        self.oversized += u32::from(entry.oversized);
        let engine = entry.sequences > 0;
        let mut queued = u64::MAX;
        if engine {
            self.engaged += 1;
            self.engaged_streams += u32::from(entry.kind == Kind::Stream);
            self.prefilling += entry.sequences;
            self.queued_tokens += u64::from(entry.tokens);
            self.kv_tokens += u64::from(entry.tokens);
            // Its place among our own prompts there: the one that has waited longest tells how far the engine has come.
            queued = self.waiting.enter(QueuedPrompt { since: now, tokens: entry.tokens });
        }
        Lease {
            attempt,
            phase: Phase::Prefill,
            kind: entry.kind,
            queued,
            sequences: entry.sequences,
            oversized: entry.oversized,
            tokens: if engine { entry.tokens } else { 0 },
            claimed: entry.claimed,
            depth: entry.depth,
            prompt: entry.prompt,
            kv_tokens: if engine { u64::from(entry.tokens) } else { 0 },
            raw: entry.raw,
            dispatched: now,
            last_event: now,
            prefilled: 0,
        }
    }

    pub(super) fn first_token(&mut self, lease: &mut Lease, now: Time, lived: Time) -> bool {
        self.end_prefill(lease);
        self.decoding += lease.sequences;
        self.progress += 1;
        lease.phase = Phase::Decode;
        lease.last_event = now;
        self.prefilled += u64::from(lease.tokens);
        lease.prefilled = self.prefilled;
        // Events of several streams may be taken in another order than they came.
        self.last_first_token = self.last_first_token.max(now);
        self.ttft.observe(now.secs_since(lease.dispatched), lease.raw, lived);
        self.worth.claimed(lease.claimed);
        self.backoff.success(lease.attempt)
    }

    /// Its gap is a step time if the client was reading and the attempt is one sequence (several take turns in one step). What was
    /// prefilled in the step is expected too: else busy backends look slow, and equal ones do not share evenly.
    pub(super) fn event(&mut self, lease: &mut Lease, now: Time, client_blocked: bool) {
        self.kv_tokens += 1;
        self.generated += 1;
        self.progress += 1;
        lease.kv_tokens += 1;
        if !client_blocked && lease.sequences == 1 {
            // Others' sequences lengthen the step as ours do.
            let foreign = self.fresh(now).map_or(0.0, |scrape| scrape.running);
            let prefill = self.shape.token * (self.prefilled - lease.prefilled) as f64;
            let step = self.shape.step(f64::from(self.decoding) + foreign) + prefill;
            self.gap.observe(now.secs_since(lease.last_event), step, now, GAP_TAU);
        }
        lease.last_event = now;
        lease.prefilled = self.prefilled;
    }

    pub(super) fn succeed(&mut self, lease: &Lease, now: Time, lived: Time) -> bool {
        // What the API server answers by itself says nothing of the engine.
        if lease.kind == Kind::Light {
            return false;
        }
        self.served = Some(lease.kind);
        self.progress += 1;
        self.done.observe(lease.sequences, now);
        // A stream's claim was counted at its first token.
        if lease.kind != Kind::Stream {
            self.worth.claimed(lease.claimed);
        }
        // Its answer is its first token: an embedding has no other.
        if lease.kind == Kind::NoDecode {
            self.ttft.observe(now.secs_since(lease.dispatched), lease.raw, lived);
        }
        self.backoff.finished(lease.attempt)
    }

    pub(super) fn fail(&mut self, failure: Failure, now: Time) -> bool {
        let next = self.next;
        match failure.blame() {
            Blame::Backend => return self.backoff.failure(now, next),
            Blame::Backpressure(pause) => self.backoff.busy(pause, now, next),
            Blame::Misconfigured | Blame::Nobody => {}
        }
        false
    }

    pub(super) fn end(&mut self, lease: &Lease) {
        match lease.phase {
            Phase::Prefill => self.end_prefill(lease),
            Phase::Decode => self.decoding -= lease.sequences,
        }
        self.kv_tokens -= lease.kv_tokens;
        self.open -= 1;
        self.oversized -= u32::from(lease.oversized);
        self.engaged -= u32::from(lease.kind != Kind::Light);
        self.engaged_streams -= u32::from(lease.kind == Kind::Stream);
        self.backoff.leave(lease.attempt);
    }

    /// The attempt goes on and is no longer watched: the next scrape counts it.
    pub(super) fn depart(&mut self, lease: &Lease, now: Time) {
        self.departed.add((lease.sequences, lease.kv_tokens), now, self.stale_after);
    }

    /// Takes over a scrape; whether the engine was restarted since the one before.
    pub(super) fn set_sample(&mut self, sample: Sample, now: Time) -> bool {
        self.departed = Departed::default();
        let own = Own { prefilling: self.prefilling, decoding: self.decoding, kv_tokens: self.kv_tokens };
        let scrape = Scrape::new(sample, own, now, self.stale_after);
        let restarted = self.worth.report(scrape.sample.prefix_queries, scrape.sample.prefix_hits, now);
        if restarted {
            // An engine is slow while it is cold, so that its first measurements must be forgotten soon.
            self.ttft.renew();
            // It may have been started with another limit.
            self.running_limit = RunningLimit::default();
        }
        self.running_limit.observe(&scrape.sample);
        if self.scrape.is_some_and(|last| differs(&last.sample, &scrape.sample)) {
            self.moved = Some(now);
        }
        self.scrape = Some(scrape);
        self.scrape_failures = 0;
        restarted
    }

    pub(super) fn works_until(&self, idle: Duration) -> Option<Time> {
        let moved = self.moved?;
        // One that showed nothing has been taken since, or none yet.
        let believed = self.scrape.filter(|scrape| scrape.at == moved).map_or(moved, |scrape| scrape.stale_at);
        Some(believed.max(moved + idle))
    }

    pub(super) fn view(&self, now: Time) -> LoadView {
        let head = self.head();
        let fresh = self.fresh(now);
        LoadView {
            open_attempts: self.open,
            prefilling: self.prefilling,
            decoding: self.decoding,
            queued_prompt_tokens: self.queued_tokens,
            kv_tokens: self.kv_tokens,
            head_for_seconds: head.map(|head| now.secs_since(head.since)),
            head_tokens: head.map(|head| head.tokens),
            foreign_running: fresh.map_or(0.0, |scrape| scrape.running),
            foreign_waiting: fresh.map_or(0.0, |scrape| scrape.waiting),
            foreign_kv_tokens: fresh.map_or(0.0, |scrape| scrape.kv_tokens),
            completions_per_second: self.done.read(now),
            generated_tokens: self.generated,
            prefix_worth: self.worth.factor(now),
            running_limit: self.running_limit.known(),
            fails: self.backoff.pauses(),
            open_for_seconds: self.backoff.open_for(now).as_secs_f64(),
            probing: self.backoff.probing(),
            scrape_failures: self.scrape_failures,
            scrape: self.scrape.map(|scrape| ScrapeView {
                age_seconds: now.secs_since(scrape.at),
                stale: fresh.is_none(),
                queue_depth: scrape.sample.waiting,
                sample: scrape.sample,
            }),
        }
    }

    /// The last scrape, unless it is too old to be believed.
    pub(super) fn fresh(&self, now: Time) -> Option<&Scrape> {
        self.scrape.as_ref().filter(|scrape| now <= scrape.stale_at)
    }

    fn head(&self) -> Option<Head> {
        let head = self.waiting.head()?;
        // Up to the last first token the engine may have been at another prompt: this one's turn came later.
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
