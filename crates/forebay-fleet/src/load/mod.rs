//! What one backend has to do, as far as this proxy knows: own counters, latency estimators, back-off, and the last scrape.
//! Updated in place by tickets and the scraper; survives every change of the snapshot that keeps the backend.
//!
//! Hot path: the pool's gate, a few additions; no allocation (but when a queue grows past its longest). The numbers of a
//! pool's backends lie behind one mutex and not behind one each: a decision reads them all, and sixteen uncontended locks alone
//! were 190 of 575 ns.

pub(crate) mod backoff;
mod departed;
pub(crate) mod lease;
mod prefill;
mod running_limit;
mod scrape;
mod state;
pub mod view;
mod vitals;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_core::clock::Time;
use forebay_core::error::Failure;
use forebay_core::routing::affinity::Index;
use forebay_core::routing::estimate::Pace;
use forebay_core::routing::facts::Kind;
use forebay_core::sample::Sample;

pub(crate) use state::LoadState;

use lease::{Lease, Phase};
use view::LoadView;

/// A table of the loads of a pool's backends: one mutex for all of them.
pub(crate) trait LoadTable: fmt::Debug + Send + Sync {
    /// Calls `act` once, with the load in `slot` and the pool's own time.
    fn with(&self, slot: usize, act: &mut dyn FnMut(&mut LoadState, Pace));
    /// Changes what may make room, or who may have it: whoever waits for that is served before the mutex opens.
    fn change(&self, slot: usize, act: &mut dyn FnMut(&mut LoadState, Pace));
    /// Calls `act` once, with the load in `slot` and what is known of the pool's prefix caches.
    fn with_cache(&self, slot: usize, act: &mut dyn FnMut(&mut LoadState, &mut Index));
    /// The slot is free.
    fn give_back(&self, slot: usize);
}

/// The load of one backend: a slot in its pool's table, given back when the last holder lets go.
#[derive(Debug)]
pub struct Load {
    table: Arc<dyn LoadTable>,
    slot: usize,
    /// The server has answered something.
    heard: AtomicBool,
}

/// Calls `act` through a table, which calls back once, and hands its value on.
fn once<A, B, T>(act: impl FnOnce(&mut A, B) -> T, call: impl FnOnce(&mut dyn FnMut(&mut A, B))) -> T {
    // A trait object takes no generic closure and returns no generic value: both pass through options.
    let (mut act, mut value) = (Some(act), None);
    call(&mut |a, b| value = act.take().map(|act| act(a, b)));
    value.expect("a table calls back once")
}

impl Load {
    /// The load in this slot, which is its own.
    pub(crate) fn new(table: Arc<dyn LoadTable>, slot: usize) -> Load {
        Load { table, slot, heard: AtomicBool::new(false) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut LoadState) -> T) -> T {
        self.read(|state, _| act(state))
    }

    fn read<T>(&self, act: impl FnOnce(&mut LoadState, Pace) -> T) -> T {
        once(act, |act| self.table.with(self.slot, act))
    }

    /// An attempt's success needs none of this, since its end follows.
    fn change<T>(&self, act: impl FnOnce(&mut LoadState, Pace) -> T) -> T {
        once(act, |act| self.table.change(self.slot, act))
    }

    /// The server answered, so that it is not one that has yet to start.
    pub fn note_heard(&self) {
        // Read first: nearly every call finds it set, and a store would take the cache line from the other readers.
        if !self.was_heard() {
            self.heard.store(true, Ordering::Relaxed);
        }
    }

    /// Returns whether the server has answered anything.
    #[must_use]
    pub fn was_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// The slot behind the pool's gate.
    pub(crate) fn slot(&self) -> usize {
        self.slot
    }

    /// Takes over a changed configuration; what was measured stays, as a ratio to the old prior until it is forgotten.
    pub(crate) fn retune(&self, speed: f64, stale_after: Duration) {
        self.with(|state| state.retune(speed, stale_after));
    }

    /// The first token of a stream: prefill is over and measured. Nothing for other kinds, which show none. Whether the backend
    /// was on trial and has passed.
    pub(crate) fn first_token(&self, lease: &mut Lease, now: Time) -> bool {
        let is_first = lease.kind == Kind::Stream && lease.phase == Phase::Prefill;
        is_first && self.change(|state, pace| state.first_token(lease, now, pace.lived(now)))
    }

    /// A later event of a stream.
    pub(crate) fn event(&self, lease: &mut Lease, now: Time, client_blocked: bool) {
        if lease.phase == Phase::Decode {
            self.with(|state| state.event(lease, now, client_blocked));
        }
    }

    /// The attempt goes on and is no longer watched.
    pub(crate) fn depart(&self, lease: &Lease, now: Time) {
        self.with(|state| state.depart(lease, now));
    }

    /// The attempt succeeded. Whether the backend was on trial and has passed.
    pub(crate) fn succeed(&self, lease: &Lease, now: Time) -> bool {
        self.read(|state, pace| state.succeed(lease, now, pace.lived(now)))
    }

    /// Gives back what the attempt took. Needs no time, so that a drop can do it.
    pub(crate) fn end(&self, lease: &Lease) {
        self.change(|state, _| state.end(lease));
    }

    /// Returns whether nothing of ours is under way there.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.with(|state| state.in_flight() == 0)
    }

    /// Every number that the router sees, and the scrape behind them.
    #[must_use]
    pub fn view(&self, now: Time) -> LoadView {
        self.with(|state| state.view(now))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.table.give_back(self.slot);
    }
}

#[cfg(test)]
mod tests;
