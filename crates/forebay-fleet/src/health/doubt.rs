//! Doubt about what a backend serves, raised by its answers to clients and settled by a question of our own. One answer to one
//! client's request proves nothing: a client has chosen what the backend was asked.
//!
//! Hot path: only refused attempts, and requests for what no backend lists, come here.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::locked;
use forebay_core::clock::Time;

/// Models remembered that the backend denied.
const DENIED: usize = 64;
/// The time for which the backends that did not deny a model come first.
const DENIED_FOR: Duration = Duration::from_secs(60);

/// The doubt about one backend; kept, as its load is, for as long as the backend is configured.
#[derive(Debug, Default)]
pub struct Doubt {
    wake: Notify,
    /// The status that refused what the configuration promises; 0: none since it was last taken.
    refused: AtomicU16,
    /// The models that it said do not exist, by their hashes, the latest last.
    denied: Mutex<VecDeque<(u64, Time)>>,
    hasher: RandomState,
}

impl Doubt {
    /// The backend answered with this status to a request for what the configuration says it serves, or to our key.
    pub fn raise(&self, status: u16) {
        // Stored before the wake, so that whoever wakes finds it.
        self.refused.store(status, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Asks for a new list: the one that the backend is known by is out of date.
    pub fn ask_again(&self) {
        self.wake.notify_one();
    }

    /// The backend said that this model does not exist.
    pub fn denied(&self, model: &str, now: Time) {
        let model = self.hasher.hash_one(model);
        let mut denied = locked(&self.denied);
        // A model that is denied again becomes the newest, so that the oldest goes first where there are too many.
        denied.retain(|(other, _)| *other != model);
        // Bounded, and hashes only: clients choose the names.
        if denied.len() == DENIED {
            denied.pop_front();
        }
        denied.push_back((model, now));
    }

    /// Returns whether the backend has said of late that this model does not exist. A hint: it may have loaded the model since.
    #[must_use]
    pub fn denies(&self, model: &str, now: Time) -> bool {
        let model = self.hasher.hash_one(model);
        locked(&self.denied).iter().any(|(other, at)| *other == model && now.since(*at) < DENIED_FOR)
    }

    /// Waits until somebody doubts; at once if somebody has since the last time.
    pub async fn raised(&self) {
        // A wake is kept while nobody waits, so a doubt that comes during a question leads to another one.
        self.wake.notified().await;
    }

    /// The status that is to be confirmed, which so is taken.
    #[must_use]
    pub fn take(&self) -> Option<u16> {
        Some(self.refused.swap(0, Ordering::Relaxed)).filter(|status| *status != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denials_are_bounded_and_pass() {
        let (doubt, at) = (Doubt::default(), |seconds: u64| Time::from_micros(seconds * 1_000_000));
        doubt.denied("m", at(1));
        assert!(doubt.denies("m", at(60)) && !doubt.denies("m", at(61)) && !doubt.denies("n", at(1)));
        (0..2 * DENIED).for_each(|n| doubt.denied(&format!("m{n}"), at(2)));
        assert!(!doubt.denies("m", at(2)) && doubt.denies("m127", at(2)));
        assert_eq!(locked(&doubt.denied).len(), DENIED);
    }

    #[test]
    fn a_refusal_is_taken_once() {
        let doubt = Doubt::default();
        doubt.ask_again();
        assert_eq!(doubt.take(), None);
        doubt.raise(404);
        assert_eq!((doubt.take(), doubt.take()), (Some(404), None));
    }
}
