//! The lease of one attempt on one backend. Dropping it gives everything back through a pointer, whatever happened to the
//! snapshot meanwhile, so that no path can leak or count twice.
//!
//! Hot path: one short mutex for each event, no allocation.

use std::sync::Arc;
use std::time::Duration;

use super::backend::Backend;
use crate::health::alarm::Watch;
use crate::load::Load;
use crate::load::lease::Lease;
use forebay_core::clock::Time;
use forebay_core::error::{Blame, Failure};
use forebay_core::routing::facts::Kind;

/// The way in which an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// It ended well.
    Success,
    /// Neither good nor bad for the backend: the client's fault, or the request's.
    Neutral,
    /// It failed; whom that blames is the failure's.
    Failed(Failure),
}

/// One attempt's place on a backend.
#[derive(Debug)]
#[must_use = "dropping a Ticket frees its slot"]
pub struct Ticket {
    backend: Arc<Backend>,
    lease: Lease,
    predicted: Option<Duration>,
}

impl Ticket {
    pub(crate) fn new(backend: Arc<Backend>, lease: Lease, predicted: Option<Duration>) -> Ticket {
        Ticket { backend, lease, predicted }
    }

    /// The backend.
    #[must_use]
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// The predicted time from dispatch to the first token; none for an attempt that shows none.
    #[must_use]
    pub fn predicted_ttft(&self) -> Option<Duration> {
        self.predicted
    }

    /// An ear for what ends this attempt from outside.
    #[must_use]
    pub fn watch(&self, now: Time) -> Watch {
        self.backend.alarm.watch(self.lease.kind, now)
    }

    /// Returns the handle by which the relay tells and asks of the engine's load.
    #[must_use]
    pub fn engine_load(&self) -> EngineLoad {
        // The watchdog never counts a light request as one that waits, so a pause of it must not be subtracted.
        let engine = (self.lease.kind != Kind::Light).then(|| Arc::clone(&self.backend.load));
        EngineLoad { load: engine, streams: self.lease.kind == Kind::Stream }
    }

    /// The engine has proved that it works on the request: prefill is over. A second call, and one for an attempt that is no
    /// stream, does nothing.
    pub fn first_token(&mut self, now: Time) {
        // On a trial a first token is proof enough: the whole answer may take minutes.
        if self.backend.load.first_token(&mut self.lease, now) {
            self.backend.reports.served(self.backend.id, now);
        }
    }

    /// A later event of the stream. `client_blocked`: a write to the client was waiting at some time since the last event, so
    /// that the gap says nothing of the engine.
    pub fn event(&mut self, now: Time, client_blocked: bool) {
        self.backend.load.event(&mut self.lease, now, client_blocked);
    }

    /// The answer said how many tokens its prompt has and how many of them were in the prefix cache.
    pub fn cached(&self, prompt_tokens: u64, cached_tokens: u64) {
        self.backend.load.cached(&self.lease, prompt_tokens, cached_tokens);
    }

    /// Lets the attempt go on without being watched. Until the next scrape counts it, it stays in the backend's load.
    pub fn leave(self, now: Time) {
        self.backend.load.depart(&self.lease, now);
    }

    /// The end. Without it, a drop is an attempt abandoned, blamed on nobody.
    pub fn finish(self, outcome: AttemptOutcome, now: Time) {
        match outcome {
            AttemptOutcome::Success => {
                // Only the end of a trial is news to the writer: nearly all answers end here, without its lock.
                if self.backend.load.succeed(&self.lease, now) {
                    self.backend.reports.served(self.backend.id, now);
                }
            }
            // A client that left or asked for nonsense says nothing of the backend.
            AttemptOutcome::Neutral => {}
            // Nobody will withdraw it: the suspicion stands at once.
            AttemptOutcome::Failed(failure) => drop(self.suspect(failure, now)),
        }
    }

    /// The end by a failure that may turn out to be the request's own doing: the backend pauses at once, or it would look idle
    /// to all who come while the request is tried elsewhere; [`Suspicion::withdraw`] takes that back.
    pub fn suspect(self, failure: Failure, now: Time) -> Suspicion {
        // The back-off begins at once, before anybody decides whom the failure is held against: the next request must
        // go elsewhere.
        let pauses = self.backend.load.fail(failure, now);
        Suspicion {
            backend: Arc::clone(&self.backend),
            failure,
            at: now,
            pauses,
            // Only failures of this kind count in the row that ejects a backend.
            stands: failure.blame() == Blame::Backend,
        }
    }
}

/// The load of an attempt that the watchdog waits for; none for what needs no engine.
#[derive(Clone, Debug)]
pub struct EngineLoad {
    load: Option<Arc<Load>>,
    streams: bool,
}

impl EngineLoad {
    /// Notes that the attempt's client does not read until the value is dropped, so that its backend's silence says nothing.
    pub fn pause(&self) -> Pause {
        if let Some(load) = &self.load {
            load.pause(true, self.streams);
        }
        Pause(self.clone())
    }

    /// Returns the time until which the engine counts as one that works, if its metrics have shown progress: as long as the last
    /// scrape is believed where that one did, and for `idle` after the last that did. `None` where nothing is known.
    #[must_use]
    pub fn works_until(&self, idle: Duration) -> Option<Time> {
        self.load.as_ref()?.works_until(idle)
    }
}

/// A client that does not read.
#[derive(Debug)]
#[must_use = "dropping a Pause ends it"]
pub struct Pause(EngineLoad);

impl Drop for Pause {
    fn drop(&mut self) {
        if let Some(load) = &self.0.load {
            load.pause(false, self.0.streams);
        }
    }
}

/// A failure that is held against a backend until another backend has shown whose doing it was. Dropped, it stands.
#[derive(Debug)]
pub struct Suspicion {
    backend: Arc<Backend>,
    failure: Failure,
    at: Time,
    /// It began a pause.
    pauses: bool,
    stands: bool,
}

impl Suspicion {
    /// Another backend failed in the same way: it is the request.
    pub fn withdraw(mut self) {
        self.stands = false;
        // Only a pause that this failure began is taken back.
        if self.pauses {
            self.backend.load.withdraw();
        }
    }
}

impl Drop for Suspicion {
    fn drop(&mut self) {
        // On the drop, so that no way out of the caller forgets a failure.
        if self.stands {
            let row = self.backend.load.count_failure();
            // The gate is open again: the writer takes its own lock first, and the gates under it.
            self.backend.reports.failed(self.backend.id, row, self.failure, self.at);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.backend.load.end(&self.lease);
    }
}
