//! Runs an engine in real time: one task for each server steps it when its virtual time has come, and tells each request
//! how many tokens it has. Whoever drops a [`Ticket`] before the end aborts its request in the engine at once.
//!
//! A token costs one atomic store and one wake-up; its bytes are made by the task that sends them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::sync::Notify;

use forebay_core::clock::{Clock, Time};

use super::metrics::{self, Recorder};
use super::ticket::{Aborts, Progress, Ticket};
use crate::engine::{Counters, Engine, Event, RequestId, Submission, SubmitError};
use crate::profile::Profile;

struct Sink {
    progress: Arc<Progress>,
    offset: usize,
    prompt: u32,
    limited: bool,
    submitted: Time,
    last: Vec<(Time, Time)>,
    open: u32,
}

struct Inner {
    engine: Engine,
    sinks: HashMap<RequestId, Sink>,
    next: u64,
    recorder: Recorder,
    events: Vec<Event>,
    lateness: Histogram<u64>,
    /// The time in virtual time since which the engine hangs, and its metrics of then; none while it works.
    frozen: Option<(Time, String)>,
    /// Virtual time that passed while it hung.
    lost: Duration,
    /// The engine is gone, and none has come in its place: what comes to it dies at once.
    dead: bool,
}

/// The wall-clock time by which the machine let the simulation be late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// The 99th percentile over all steps.
    pub p99: Duration,
    /// The worst.
    pub max: Duration,
}

/// An engine that runs in real time.
pub struct Pacer {
    inner: Mutex<Inner>,
    clock: Clock,
    time_scale: f64,
    wake: Notify,
    model: String,
}

/// The work that one prompt of a request asks for.
#[derive(Clone, Debug)]
pub struct Work {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Hashes of its blocks.
    pub block_hashes: Arc<[u64]>,
    /// Tokens that each answer will have.
    pub output_tokens: u32,
    /// True if that is the client's limit, and not the answer's own end.
    pub limited: bool,
}

impl Pacer {
    /// An idle engine, `model` in its metrics; `time_scale` 5 runs five times as fast as the profile says.
    #[must_use]
    pub fn new(profile: &Profile, model: &str, seed: u64, time_scale: f64) -> Arc<Pacer> {
        Arc::new(Pacer {
            inner: Mutex::new(Inner {
                engine: Engine::new(profile.engine(seed)),
                sinks: HashMap::new(),
                next: 0,
                recorder: Recorder::default(),
                events: Vec::new(),
                lateness: Histogram::new(3).expect("three digits are allowed"),
                frozen: None,
                lost: Duration::ZERO,
                dead: false,
            }),
            clock: Clock::system(),
            time_scale,
            wake: Notify::new(),
            model: model.to_owned(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn virtual_now(&self, inner: &Inner) -> Time {
        match &inner.frozen {
            Some((since, _)) => *since,
            None => self.unfrozen_now(inner.lost),
        }
    }

    fn unfrozen_now(&self, lost: Duration) -> Time {
        let passed = Time::from_micros((self.clock.now().as_micros() as f64 * self.time_scale) as u64);
        Time::ZERO + passed.since(Time::ZERO + lost)
    }

    fn wall(&self, span: Duration) -> Duration {
        span.div_f64(self.time_scale)
    }

    /// Gives the engine a request of one or more prompts with `n` answers each. `each_token`: the ticket is woken for each
    /// token and not just at the end.
    ///
    /// # Errors
    /// A prompt with its answer is larger than the memory.
    pub fn submit(self: &Arc<Pacer>, work: &[Work], n: u32, each_token: bool) -> Result<Ticket, SubmitError> {
        let mut ticket = Ticket::new(Arc::<Pacer>::clone(self), work.len() * n as usize, each_token);
        let mut inner = self.lock();
        // The API server of a dead engine still takes requests, and answers each with the engine's death.
        if inner.dead {
            ticket.progress().die();
            return Ok(ticket);
        }
        let now = self.virtual_now(&inner);
        self.catch_up(&mut inner, now);
        // Only an idle engine's task sleeps without a time. Any other wakes by itself.
        let idle = inner.engine.next_step_at().is_none();
        for (index, part) in work.iter().enumerate() {
            inner.next += 1;
            let id = RequestId(inner.next);
            let request = Submission {
                id,
                prompt_tokens: part.prompt_tokens,
                output_tokens: part.output_tokens,
                sequences: n,
                block_hashes: Arc::clone(&part.block_hashes),
            };
            if let Err(error) = inner.engine.submit(now, &request) {
                drop(inner);
                return Err(error);
            }
            let sink = Sink {
                progress: Arc::clone(ticket.progress()),
                offset: index * n as usize,
                prompt: part.prompt_tokens,
                limited: part.limited,
                submitted: now,
                last: vec![(now, now); n as usize],
                open: n,
            };
            inner.sinks.insert(id, sink);
            ticket.add(id);
        }
        drop(inner);
        if idle {
            self.wake.notify_one();
        }
        Ok(ticket)
    }

    /// Steps the engine when its time has come, for ever.
    pub async fn run(self: Arc<Pacer>) {
        loop {
            let next = {
                let mut inner = self.lock();
                let now = self.virtual_now(&inner);
                let due = inner.engine.next_step_at().filter(|due| *due <= now && inner.frozen.is_none());
                if let Some(due) = due {
                    // How late the machine lets a step be is a property of the run, not of the profile: it is told,
                    // so that a figure from a busy machine is known as such.
                    let late = self.wall(now.since(due));
                    inner.lateness.saturating_record(u64::try_from(late.as_micros()).unwrap_or(u64::MAX));
                }
                self.catch_up(&mut inner, now);
                let due = inner.engine.next_step_at().filter(|_| inner.frozen.is_none());
                due.map(|due| self.wall(due.since(now)))
            };
            match next {
                Some(wait) => tokio::time::sleep(wait).await,
                // Nothing is due: the next request wakes it.
                None => self.wake.notified().await,
            }
        }
    }

    fn catch_up(&self, inner: &mut Inner, now: Time) {
        if inner.frozen.is_some() {
            return;
        }
        // The list is kept for its memory: a step of hundreds of sequences would allocate it each time.
        let mut events = std::mem::take(&mut inner.events);
        inner.engine.step(now, &mut events);
        for event in events.drain(..) {
            self.deliver(inner, &event);
        }
        inner.events = events;
    }

    fn deliver(&self, inner: &mut Inner, event: &Event) {
        let Inner { sinks, recorder, .. } = inner;
        // Its client left in this step. The engine had computed the token already.
        let Some(sink) = sinks.get_mut(&event.id) else { return };
        let Some((first, last)) = sink.last.get_mut(event.choice as usize) else { return };
        let seconds = |span: Duration| self.wall(span).as_secs_f64();
        if event.tokens == 1 {
            *first = event.at;
            recorder.ttft.observe(seconds(event.at.since(sink.submitted)));
        } else {
            recorder.gap.observe(seconds(event.at.since(*last)));
        }
        *last = event.at;
        let progress = &sink.progress;
        progress.advance(sink.offset + event.choice as usize, event);
        if event.finished {
            let decode = event.at.since(*first);
            let whole = event.at.since(sink.submitted);
            recorder.e2e.observe(seconds(whole));
            recorder.queue.observe(seconds(event.queued));
            recorder.prefill.observe(seconds(first.since(sink.submitted).saturating_sub(event.queued)));
            recorder.decode.observe(seconds(decode));
            if event.tokens > 1 {
                recorder.tpot.observe(seconds(decode) / f64::from(event.tokens - 1));
            }
            recorder.prompt_tokens.observe(f64::from(sink.prompt));
            recorder.generation_tokens.observe(f64::from(event.tokens));
            recorder.preemptions.observe(f64::from(event.preemptions));
            *(if sink.limited { &mut recorder.limited } else { &mut recorder.stopped }) += 1;
            sink.open -= 1;
        }
        if sink.open == 0 {
            sinks.remove(&event.id);
        }
    }

    /// Stops the engine in the middle of what it does: no step ends, and its metrics stand still.
    pub fn freeze(&self) {
        let mut inner = self.lock();
        if inner.frozen.is_some() {
            return;
        }
        let now = self.virtual_now(&inner);
        self.catch_up(&mut inner, now);
        // A hanging engine's metrics stand still, while its server goes on to serve them: that is how a watchdog sees
        // it.
        let text = metrics::render(&inner.engine, &inner.recorder, &self.model);
        inner.frozen = Some((now, text));
    }

    /// Lets a stopped engine go on from where it was.
    pub fn thaw(&self) {
        let mut inner = self.lock();
        if let Some((since, _)) = inner.frozen.take() {
            let passed = self.unfrozen_now(inner.lost).since(since);
            inner.lost += passed;
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// Makes steps take `factor` times as long from the next one on.
    pub fn slow_down(&self, factor: f64) {
        self.lock().engine.slow_down(factor);
    }

    /// Ends the engine: its requests die with it, and so do those that come before [`Pacer::restart`].
    pub fn kill(&self) {
        self.replace(true);
    }

    /// A new engine in the place of this one, whose requests die with it.
    pub fn restart(&self) {
        self.replace(false);
    }

    fn replace(&self, dead: bool) {
        self.thaw();
        let mut inner = self.lock();
        inner.dead = dead;
        inner.engine = Engine::new(*inner.engine.config());
        inner.recorder = Recorder::default();
        for (_, sink) in inner.sinks.drain() {
            sink.progress.die();
        }
    }

    /// The text of `/metrics`.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut inner = self.lock();
        if let Some((_, text)) = &inner.frozen {
            return text.clone();
        }
        let now = self.virtual_now(&inner);
        self.catch_up(&mut inner, now);
        metrics::render(&inner.engine, &inner.recorder, &self.model)
    }

    /// Requests under way, waiting ones included.
    #[must_use]
    pub fn load(&self) -> usize {
        self.lock().sinks.len()
    }

    /// The engine's sums.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.lock().engine.counters().clone()
    }

    /// Sequences running and waiting, and blocks of memory in use.
    #[must_use]
    pub fn occupancy(&self) -> (usize, usize, u32) {
        let inner = self.lock();
        (inner.engine.running(), inner.engine.waiting(), inner.engine.kv_blocks_in_use())
    }

    /// Returns how late steps were for want of processor time.
    #[must_use]
    pub fn lag(&self) -> Lag {
        let inner = self.lock();
        Lag {
            p99: Duration::from_micros(inner.lateness.value_at_quantile(0.99)),
            max: Duration::from_micros(inner.lateness.max()),
        }
    }
}

impl Aborts for Pacer {
    fn abort(&self, ids: &[RequestId]) {
        let mut inner = self.lock();
        // The usual end of a ticket: all is over, and the engine need not be asked.
        if !ids.iter().any(|id| inner.sinks.contains_key(id)) {
            return;
        }
        let now = self.virtual_now(&inner);
        self.catch_up(&mut inner, now);
        for id in ids {
            if inner.sinks.remove(id).is_some() {
                inner.engine.abort(*id);
            }
        }
    }
}

/// Ends a task when its owner is gone.
pub(super) struct Aborting(pub(super) tokio::task::JoinHandle<()>);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}
