//! Runs an engine in real time: one task for each server steps it when its virtual time has come, and tells each request
//! how many tokens it has. Whoever drops a [`Ticket`] before the end aborts its request in the engine at once.
//!
//! A token costs one atomic store and one wake-up; its bytes are made by the task that sends them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hdrhistogram::Histogram;
use tokio::sync::Notify;

use crate::clock::{Clock, Time};

use super::engine::{Counters, Engine, Event, RequestId, Submission, SubmitError};
use super::metrics::{self, Recorder};
use super::profile::Profile;

const FINISHED: u32 = 1 << 31;

/// How far a request has come, shared between the engine's task and the one that answers.
#[derive(Debug)]
struct Progress {
    waker: AtomicWaker,
    /// Tokens of each choice, with [`FINISHED`] once there are no more.
    choices: Box<[AtomicU32]>,
    cached: AtomicU32,
    each_token: bool,
}

/// How a choice stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Tokens made.
    pub tokens: u32,
    /// Whether there will be no more.
    pub finished: bool,
}

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
}

/// How late the machine let the simulation be, in wall-clock time.
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
}

/// What one prompt of a request asks for.
#[derive(Clone, Debug)]
pub struct Work {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Hashes of its blocks.
    pub block_hashes: Arc<[u64]>,
    /// Tokens that each answer will have.
    pub output_tokens: u32,
    /// Whether that is the client's limit, and not the answer's own end.
    pub limited: bool,
}

impl Pacer {
    /// An idle engine; `time_scale` 5 runs five times as fast as the profile says.
    #[must_use]
    pub fn new(profile: &Profile, seed: u64, time_scale: f64) -> Arc<Pacer> {
        Arc::new(Pacer {
            inner: Mutex::new(Inner {
                engine: Engine::new(profile.engine(seed)),
                sinks: HashMap::new(),
                next: 0,
                recorder: Recorder::default(),
                events: Vec::new(),
                lateness: Histogram::new(3).expect("three digits are allowed"),
            }),
            clock: Clock::system(),
            time_scale,
            wake: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn virtual_now(&self) -> Time {
        Time::from_micros((self.clock.now().as_micros() as f64 * self.time_scale) as u64)
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
        let progress = Arc::new(Progress {
            waker: AtomicWaker::new(),
            choices: (0..work.len() * n as usize).map(|_| AtomicU32::new(0)).collect(),
            cached: AtomicU32::new(0),
            each_token,
        });
        let mut ticket = Ticket { pacer: Arc::clone(self), progress, ids: Vec::with_capacity(work.len()) };
        let mut inner = self.lock();
        let now = self.virtual_now();
        self.catch_up(&mut inner, now);
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
                progress: Arc::clone(&ticket.progress),
                offset: index * n as usize,
                prompt: part.prompt_tokens,
                limited: part.limited,
                submitted: now,
                last: vec![(now, now); n as usize],
                open: n,
            };
            inner.sinks.insert(id, sink);
            ticket.ids.push(id);
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
                let now = self.virtual_now();
                if let Some(due) = inner.engine.next_step_at().filter(|due| *due <= now) {
                    let late = self.wall(now.since(due));
                    inner.lateness.saturating_record(u64::try_from(late.as_micros()).unwrap_or(u64::MAX));
                }
                self.catch_up(&mut inner, now);
                inner.engine.next_step_at().map(|due| self.wall(due.since(now)))
            };
            match next {
                Some(wait) => tokio::time::sleep(wait).await,
                None => self.wake.notified().await,
            }
        }
    }

    fn catch_up(&self, inner: &mut Inner, now: Time) {
        let mut events = std::mem::take(&mut inner.events);
        inner.engine.step(now, &mut events);
        for event in events.drain(..) {
            self.deliver(inner, &event);
        }
        inner.events = events;
    }

    fn deliver(&self, inner: &mut Inner, event: &Event) {
        let Inner { sinks, recorder, .. } = inner;
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
        progress.cached.store(event.cached_tokens, Ordering::Relaxed);
        let mark = if event.finished { event.tokens | FINISHED } else { event.tokens };
        progress.choices[sink.offset + event.choice as usize].store(mark, Ordering::Release);
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
        if progress.each_token || event.finished {
            progress.waker.wake();
        }
        if sink.open == 0 {
            sinks.remove(&event.id);
        }
    }

    fn abort(&self, ids: &[RequestId]) {
        let mut inner = self.lock();
        if !ids.iter().any(|id| inner.sinks.contains_key(id)) {
            return;
        }
        let now = self.virtual_now();
        self.catch_up(&mut inner, now);
        for id in ids {
            if inner.sinks.remove(id).is_some() {
                inner.engine.abort(*id);
            }
        }
    }

    /// The text of `/metrics`.
    #[must_use]
    pub fn metrics(&self, model: &str) -> String {
        let mut inner = self.lock();
        let now = self.virtual_now();
        self.catch_up(&mut inner, now);
        metrics::render(&inner.engine, &inner.recorder, model)
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

    /// How late steps were for want of processor time.
    #[must_use]
    pub fn lag(&self) -> Lag {
        let inner = self.lock();
        Lag {
            p99: Duration::from_micros(inner.lateness.value_at_quantile(0.99)),
            max: Duration::from_micros(inner.lateness.max()),
        }
    }
}

/// A request in the engine.
#[must_use = "dropping a Ticket aborts its request"]
pub struct Ticket {
    pacer: Arc<Pacer>,
    progress: Arc<Progress>,
    ids: Vec<RequestId>,
}

impl Ticket {
    /// Choices, over all prompts.
    #[must_use]
    pub fn choices(&self) -> usize {
        self.progress.choices.len()
    }

    /// Asks to be woken at the next change. Register first, then read: a change in between wakes.
    pub fn register(&self, context: &Context<'_>) {
        self.progress.waker.register(context.waker());
    }

    /// How a choice stands.
    #[must_use]
    pub fn standing(&self, choice: usize) -> Standing {
        let mark = self.progress.choices[choice].load(Ordering::Acquire);
        Standing { tokens: mark & !FINISHED, finished: mark & FINISHED != 0 }
    }

    /// Tokens of the prompt that were in the prefix cache.
    #[must_use]
    pub fn cached_tokens(&self) -> u32 {
        self.progress.cached.load(Ordering::Relaxed)
    }

    /// Waits for the end of all choices.
    pub async fn finished(&self) {
        std::future::poll_fn(|context| {
            self.register(context);
            let open = (0..self.choices()).any(|choice| !self.standing(choice).finished);
            if open { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.pacer.abort(&self.ids);
    }
}

/// Ends a task when its owner is gone.
pub(super) struct Aborting(pub(super) tokio::task::JoinHandle<()>);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}
