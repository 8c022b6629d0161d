//! The time since a backend was found to show no progress: it leaves `/health` unanswered, or its engine has work and does none. Kept
//! apart from the state, since a backend that is out already may be found to hang as well. Pure: time comes in as an argument.

use forebay_core::clock::Time;

/// The stall of one backend, by what found it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stall {
    /// The moment from which `/health` counts as unanswered.
    silent: Option<Time>,
    /// The moment at which the watchdog found the engine hung.
    engine: Option<Time>,
}

impl Stall {
    /// `/health` had no answer, often enough.
    pub(crate) fn is_silent(&mut self, now: Time) {
        self.silent.get_or_insert(now);
    }

    /// The server answered something. That says nothing of its engine.
    pub(crate) fn speaks(&mut self) {
        self.silent = None;
    }

    /// The engine has work and makes no progress.
    pub(crate) fn hangs(&mut self, now: Time) {
        self.engine.get_or_insert(now);
    }

    /// It serves, or nobody is there any more.
    pub(crate) fn is_over(&mut self) {
        *self = Stall::default();
    }

    /// Returns the moment from which it counts as stalled.
    pub(crate) fn since(self) -> Option<Time> {
        self.silent.into_iter().chain(self.engine).min()
    }
}
