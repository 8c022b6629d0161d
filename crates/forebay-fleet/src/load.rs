//! What one backend has to do, as far as this proxy knows: own counters, latency estimators, back-off, and the last scrape.
//! Updated in place by tickets and the scraper; survives every change of the snapshot that keeps the backend.
//!
//! Hot path: the pool's gate, a few additions; no allocation (but when a queue grows past its longest). The numbers of a
//! pool's backends lie behind one mutex and not behind one each: a decision reads them all, and sixteen uncontended locks alone
//! were 190 of 575 ns.

mod vitals;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::backoff::Backoff;
use super::gate::Gate;
use super::lease::{Entry, Lease, Phase};
use super::locked;
use super::prefill::{PrefillQueue, Waiting};
use super::scrape::{Own, Scrape};
use super::view::{LoadView, ScrapeView};
use forebay_core::clock::Time;
use forebay_core::error::{Blame, Failure};
use forebay_core::routing::affinity::{BLOCK, Worth};
use forebay_core::routing::candidate::{Candidate, Foreign, Head};
use forebay_core::routing::cost::Shape;
use forebay_core::routing::estimate::{DecayedRate, DecayedRatio, GAP_POOL_TAU, GAP_TAU, Pace, TtftRatio};
use forebay_core::routing::facts::Kind;
use forebay_core::sample::Sample;
use forebay_core::units::BackendId;

/// The load of one backend: a slot behind its pool's gate, given back when the last holder lets go.
#[derive(Debug)]
pub struct Load {
    gate: Arc<Mutex<Gate>>,
    slot: usize,
}

/// What is in the slot.
#[derive(Debug)]
pub(super) struct Numbers {
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
    /// Uncached prompt tokens of all streams that got their first token.
    prefilled: u64,
    ttft: TtftRatio,
    gap: DecayedRatio,
    done: DecayedRate,
    backoff: Backoff,
    /// Tokens that it has generated for requests from here.
    generated: u64,
    worth: Worth,
    served: Option<Kind>,
    progress: u64,
    /// Attempts on the engine, and those of them whose clients do not read.
    engaged: u32,
    paused: u32,
    /// The number of the next attempt.
    next: u64,
    turn: u64,
    scrape: Option<Scrape>,
    scrape_failures: u32,
}

impl Load {
    /// Nothing to do and nothing known. `speed` is the operator's prior; scrapes older than `stale_after` count as absent.
    pub(super) fn new(gate: &Arc<Mutex<Gate>>, speed: f64, stale_after: Duration) -> Load {
        let slot = locked(gate).slots.take(Numbers::new(speed, stale_after));
        Load { gate: Arc::clone(gate), slot }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Numbers) -> T) -> T {
        act(locked(&self.gate).slots.get_mut(self.slot))
    }

    /// The same for what may make room, or change who may have it: whoever waits for that is served before the gate opens.
    /// An attempt's success needs none of it, since its end follows.
    fn change<T>(&self, act: impl FnOnce(&mut Numbers, Pace) -> T) -> T {
        let mut gate = locked(&self.gate);
        let pace = gate.pace;
        let value = act(gate.slots.get_mut(self.slot), pace);
        let served = gate.serve_waiters();
        drop(gate);
        served.deliver();
        value
    }

    /// The slot behind the pool's gate.
    pub(super) fn slot(&self) -> usize {
        self.slot
    }

    /// Takes over a changed configuration; what was measured stays, as a ratio to the old prior until it is forgotten.
    pub(super) fn retune(&self, speed: f64, stale_after: Duration) {
        self.with(|numbers| {
            numbers.shape = Shape::with_speed(speed);
            numbers.stale_after = stale_after;
        });
    }

    /// The first token of a stream: prefill is over and measured. Nothing for other kinds, which show none. Whether the backend
    /// was on trial and has passed.
    pub(super) fn first_token(&self, lease: &mut Lease, now: Time) -> bool {
        let is_first = lease.kind == Kind::Stream && lease.phase == Phase::Prefill;
        is_first && self.change(|numbers, pace| numbers.first_token(lease, now, pace.lived(now)))
    }

    /// A later event of a stream.
    pub(super) fn event(&self, lease: &mut Lease, now: Time, client_blocked: bool) {
        if lease.phase == Phase::Decode {
            self.with(|numbers| numbers.event(lease, now, client_blocked));
        }
    }

    /// The attempt succeeded. Whether the backend was on trial and has passed.
    pub(super) fn succeed(&self, lease: &Lease, now: Time) -> bool {
        let mut gate = locked(&self.gate);
        let lived = gate.pace.lived(now);
        gate.slots.get_mut(self.slot).succeed(lease, now, lived)
    }

    /// Gives back what the attempt took. Needs no time, so that a drop can do it.
    pub(super) fn end(&self, lease: &Lease) {
        self.change(|numbers, _| numbers.end(lease));
    }

    /// Every number that the router sees, and the scrape behind them.
    #[must_use]
    pub fn view(&self, now: Time) -> LoadView {
        self.with(|numbers| numbers.view(now))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let mut gate = locked(&self.gate);
        gate.slots.give_back(self.slot);
        gate.affinity.released(self.slot);
    }
}

impl Numbers {
    fn new(speed: f64, stale_after: Duration) -> Numbers {
        Numbers {
            shape: Shape::with_speed(speed),
            stale_after,
            open: 0,
            prefilling: 0,
            decoding: 0,
            queued_tokens: 0,
            kv_tokens: 0,
            waiting: PrefillQueue::new(),
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
            next: 0,
            turn: 0,
            scrape: None,
            scrape_failures: 0,
        }
    }

    /// The row of this backend. `mean_prompt` is what a foreign waiting request is taken for, in tokens; `lived` is `now` in the
    /// pool's time.
    #[inline]
    pub(super) fn row(&self, id: BackendId, member: u16, mean_prompt: f64, now: Time, lived: Time) -> Candidate {
        let scrape = self.fresh(now);
        Candidate {
            id,
            member,
            prefilling: self.prefilling,
            decoding: self.decoding,
            queued_tokens: self.queued_tokens,
            kv_tokens: self.kv_tokens,
            kv_capacity: scrape.and_then(|scrape| scrape.sample.kv_capacity_tokens),
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
            fails: self.backoff.fails(),
            open_for: self.backoff.open_for(now),
            probing: self.backoff.probing(),
            turn: self.turn,
            ..Candidate::idle(id, member)
        }
    }

    /// Tokens that it has generated for requests from here.
    pub(super) fn generated(&self) -> u64 {
        self.generated
    }

    /// Own sequences in flight.
    pub(super) fn in_flight(&self) -> u32 {
        self.prefilling.saturating_add(self.decoding)
    }

    /// For how much longer the backend is left alone.
    pub(super) fn open_for(&self, now: Time) -> Duration {
        self.backoff.open_for(now)
    }

    /// An attempt goes out. What it takes is given back by `end`, through the lease.
    pub(super) fn enter(&mut self, entry: Entry, now: Time, lived: Time) -> Lease {
        self.ttft.dispatch(lived);
        let attempt = self.next;
        self.next += 1;
        self.turn = entry.turn;
        self.open += 1;
        self.backoff.enter();
        let engine = entry.sequences > 0;
        let mut queued = u64::MAX;
        if engine {
            self.engaged += 1;
            self.prefilling += entry.sequences;
            self.queued_tokens += u64::from(entry.tokens);
            self.kv_tokens += u64::from(entry.tokens);
            queued = self.waiting.enter(Waiting { since: now, tokens: entry.tokens });
        }
        Lease {
            attempt,
            phase: Phase::Prefill,
            kind: entry.kind,
            queued,
            sequences: entry.sequences,
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

    fn first_token(&mut self, lease: &mut Lease, now: Time, lived: Time) -> bool {
        self.end_prefill(lease);
        self.decoding += lease.sequences;
        self.progress += 1;
        lease.phase = Phase::Decode;
        lease.last_event = now;
        self.prefilled += u64::from(lease.tokens);
        lease.prefilled = self.prefilled;
        self.last_first_token = self.last_first_token.max(now);
        self.ttft.observe(now.secs_since(lease.dispatched), lease.raw, lived);
        self.worth.claimed(lease.claimed);
        self.backoff.success(lease.attempt)
    }

    /// Its gap is a step time if the client was reading and the attempt is one sequence (several take turns in one step). What was
    /// prefilled in the step is expected too: else busy backends look slow, and equal ones do not share evenly.
    fn event(&mut self, lease: &mut Lease, now: Time, client_blocked: bool) {
        self.kv_tokens += 1;
        self.generated += 1;
        self.progress += 1;
        lease.kv_tokens += 1;
        if !client_blocked && lease.sequences == 1 {
            let foreign = self.fresh(now).map_or(0.0, |scrape| scrape.running);
            let prefill = self.shape.token * (self.prefilled - lease.prefilled) as f64;
            let step = self.shape.step(f64::from(self.decoding) + foreign) + prefill;
            self.gap.observe(now.secs_since(lease.last_event), step, now, GAP_TAU);
        }
        lease.last_event = now;
        lease.prefilled = self.prefilled;
    }

    fn succeed(&mut self, lease: &Lease, now: Time, lived: Time) -> bool {
        // What the API server answers by itself says nothing of the engine.
        if lease.kind == Kind::Light {
            return false;
        }
        self.served = Some(lease.kind);
        self.progress += 1;
        self.done.observe(lease.sequences, now);
        if lease.kind != Kind::Stream {
            self.worth.claimed(lease.claimed);
        }
        if lease.kind == Kind::NoDecode {
            self.ttft.observe(now.secs_since(lease.dispatched), lease.raw, lived);
        }
        self.backoff.finished(lease.attempt)
    }

    fn fail(&mut self, failure: Failure, now: Time) -> bool {
        let next = self.next;
        match failure.blame() {
            Blame::Backend => return self.backoff.failure(now, next),
            Blame::Backpressure(pause) => self.backoff.busy(pause, now),
            Blame::Misconfigured | Blame::Nobody => {}
        }
        false
    }

    fn end(&mut self, lease: &Lease) {
        match lease.phase {
            Phase::Prefill => self.end_prefill(lease),
            Phase::Decode => self.decoding -= lease.sequences,
        }
        self.kv_tokens -= lease.kv_tokens;
        self.open -= 1;
        self.engaged -= u32::from(lease.kind != Kind::Light);
        self.backoff.leave(lease.attempt);
    }

    /// Takes over a scrape; whether the engine was restarted since the one before.
    fn set_sample(&mut self, sample: Sample, now: Time) -> bool {
        let own = Own { prefilling: self.prefilling, decoding: self.decoding, kv_tokens: self.kv_tokens };
        let scrape = Scrape::new(sample, own, now, self.stale_after);
        let restarted = self.worth.report(scrape.sample.prefix_queries, scrape.sample.prefix_hits, now);
        if restarted {
            self.ttft.renew();
        }
        self.scrape = Some(scrape);
        self.scrape_failures = 0;
        restarted
    }

    fn view(&self, now: Time) -> LoadView {
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
            fails: self.backoff.fails(),
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
