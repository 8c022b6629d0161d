//! The last decisions in words, for whoever watches: a ring of a few lines, sampled, so that what watching costs has a bound
//! that does not grow with the traffic. It must never keep a request's own text.
//!
//! Hot path: one relaxed load while nobody watches; else at most [`PER_SECOND`] requests a second pay for their words.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::lock::locked;
use forebay_core::clock::Time;

/// Decisions that are kept.
pub const KEPT: usize = 24;
/// Decisions a second that are put into words, at most.
pub const PER_SECOND: u64 = 10;

/// One decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// Counts those that were told.
    pub number: u64,
    /// The moment of the decision.
    pub at: Time,
    /// The pool.
    pub pool: Arc<str>,
    /// The id of the request, as its client and the access log have it.
    pub request_id: String,
    /// The choice and its reason, as `x-forebay-explain` has them.
    pub line: String,
    /// Number of the attempt of its request that it was for, from 1.
    pub attempt: u32,
    /// The predicted time from here to the first token.
    pub predicted: Option<Duration>,
    /// The time that it took, once it came.
    pub measured: Option<Duration>,
}

/// The ring.
#[derive(Debug, Default)]
pub struct Decisions {
    watchers: Arc<AtomicUsize>,
    /// From when on, in microseconds, the next one may be told.
    next: AtomicU64,
    told: Mutex<(u64, VecDeque<Told>)>,
}

/// Somebody watches until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the watch"]
pub struct Watching(Arc<AtomicUsize>);

impl Decisions {
    /// Decisions are put into words from now on.
    pub fn watch(&self) -> Watching {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watching(Arc::clone(&self.watchers))
    }

    /// Returns whether anybody watches.
    #[must_use]
    pub fn watched(&self) -> bool {
        self.watchers.load(Ordering::Relaxed) > 0
    }

    /// Returns whether a decision of now shall be told. One that was promised and is not told is nothing lost but its turn.
    #[must_use]
    pub fn wants(&self, now: Time) -> bool {
        let (now, next) = (now.as_micros(), self.next.load(Ordering::Relaxed));
        let after = now + 1_000_000 / PER_SECOND;
        self.watched()
            && now >= next
            && self.next.compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Keeps one, whose number is given to it, in place of the oldest.
    pub fn tell(&self, mut told: Told) -> u64 {
        let mut kept = self.kept();
        kept.0 += 1;
        told.number = kept.0;
        if kept.1.len() == KEPT {
            kept.1.pop_front();
        }
        kept.1.push_back(told);
        kept.0
    }

    /// The first token of this one's request came so long after the decision.
    pub fn measured(&self, number: u64, ttft: Duration) {
        if let Some(told) = self.kept().1.iter_mut().find(|told| told.number == number) {
            told.measured = Some(ttft);
        }
    }

    /// Those that are kept, the latest first.
    #[must_use]
    pub fn latest(&self) -> Vec<Told> {
        self.kept().1.iter().rev().cloned().collect()
    }

    fn kept(&self) -> MutexGuard<'_, (u64, VecDeque<Told>)> {
        locked(&self.told)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(at: u64) -> Told {
        Told {
            number: 0,
            at: Time::from_micros(at),
            pool: "m".into(),
            request_id: format!("r{at}"),
            line: format!("decision at {at}"),
            attempt: 1,
            predicted: None,
            measured: None,
        }
    }

    #[test]
    fn nothing_is_wanted_while_nobody_watches() {
        let decisions = Decisions::default();
        assert!(!decisions.wants(Time::from_micros(5)));
        let watching = decisions.watch();
        assert!(decisions.wants(Time::from_micros(5)));
        drop(watching);
        assert!(!decisions.wants(Time::from_micros(9_000_000)));
    }

    #[test]
    fn so_many_a_second_are_wanted_whatever_the_traffic() {
        let decisions = Decisions::default();
        let _watching = decisions.watch();
        let wanted = (0..2_000_000).step_by(50).filter(|at| decisions.wants(Time::from_micros(*at))).count();
        assert_eq!(wanted as u64, 2 * PER_SECOND);
    }

    #[test]
    fn the_oldest_makes_room_and_a_measured_time_finds_its_decision() {
        let decisions = Decisions::default();
        let numbers: Vec<u64> = (0..100).map(|at| decisions.tell(told(at))).collect();
        decisions.measured(numbers[98], Duration::from_millis(7));
        decisions.measured(numbers[3], Duration::from_millis(9));
        let latest = decisions.latest();
        assert_eq!((latest.len(), latest[0].line.as_str(), latest[0].measured), (KEPT, "decision at 99", None));
        assert_eq!(latest[1].measured, Some(Duration::from_millis(7)));
        assert!(latest[2..].iter().all(|told| told.measured.is_none()));
    }
}
