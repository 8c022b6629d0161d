//! The kept-alive connections to one backend that carry no request. They have no task: whoever takes one finds out whether it is still
//! open, and a sweep closes those that nobody takes in time.
//!
//! Hot path: one short lock to take a connection and one to give it back.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::driven::Driven;
use forebay_core::clock::{Clock, Time};
use forebay_fleet::lock::locked;
use forebay_fleet::reach::Endpoint;

/// vLLM's server closes an idle connection after 5 s; ours are given up before.
const MOST_IDLE: Duration = Duration::from_secs(4);
/// Time between two sweeps.
const SWEEP: Duration = Duration::from_secs(1);

/// The idle connections to one backend.
pub(super) struct Idle {
    /// The way that they go.
    endpoint: Arc<Endpoint>,
    state: Mutex<KeptIdle>,
    clock: Clock,
}

#[derive(Default)]
struct KeptIdle {
    /// The latest comes last, and is taken first.
    connections: Vec<(Time, Box<Driven>)>,
    /// A task looks after them.
    swept: bool,
    /// The backend is gone: nothing is kept.
    closed: bool,
}

impl Idle {
    /// None yet.
    pub(super) fn new(endpoint: Arc<Endpoint>, clock: Clock) -> Arc<Idle> {
        Arc::new(Idle { endpoint, state: Mutex::default(), clock })
    }

    /// Returns whether they go this way.
    pub(super) fn goes_to(&self, endpoint: &Arc<Endpoint>) -> bool {
        Arc::ptr_eq(&self.endpoint, endpoint)
    }

    fn state(&self) -> MutexGuard<'_, KeptIdle> {
        locked(&self.state)
    }

    /// A connection, where there is one. The backend may have closed it since: then it gives the request back unsent.
    pub(super) fn take(&self, now: Time) -> Option<Box<Driven>> {
        loop {
            let (since, driven) = self.state().connections.pop()?;
            if now.since(since) < MOST_IDLE {
                return Some(driven);
            }
        }
    }

    /// Keeps a connection if it can carry another request. Must be called within tokio's runtime.
    pub(super) fn give(self: &Arc<Self>, mut driven: Box<Driven>) {
        // Nearly always it was idle as soon as its answer was whole.
        if !driven.was_idle() && !driven.is_idle() {
            return;
        }
        let now = self.clock.now();
        let mut state = self.state();
        if state.closed {
            return;
        }
        state.connections.push((now, driven));
        let swept = std::mem::replace(&mut state.swept, true);
        drop(state);
        if !swept {
            drop(tokio::spawn(Arc::clone(self).sweep()));
        }
    }

    /// Closes the connections, and those that are given back later.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let connections = std::mem::take(&mut state.connections);
        drop(state);
        drop(connections);
    }

    /// Closes what was idle for too long or was closed by the backend, until nothing is left.
    async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP).await;
            let now = self.clock.now();
            let mut state = self.state();
            let all = std::mem::take(&mut state.connections);
            let (kept, gone): (Vec<_>, Vec<_>) = all
                .into_iter()
                .map(|(since, mut driven)| (now.since(since) < MOST_IDLE && driven.is_idle(), (since, driven)))
                .partition(|(keep, _)| *keep);
            state.connections = kept.into_iter().map(|(_, kept)| kept).collect();
            if state.connections.is_empty() {
                state.swept = false;
            }
            let over = !state.swept;
            drop(state);
            // Closing takes a system call each.
            drop(gone);
            if over {
                return;
            }
        }
    }
}
