//! A warning that many requests, connections or rounds can cause, told now and then with how often it was held back.
//!
//! Hot path: one or two atomic operations; nothing is formatted for what is held back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use forebay_core::clock::Time;

/// The time between two warnings of a kind.
const APART: Duration = Duration::from_secs(10);

/// Lets one through at once, and then one in ten seconds.
#[derive(Debug)]
pub struct Throttle {
    /// In microseconds, from when on the next may pass.
    next: AtomicU64,
    held_back: AtomicU64,
}

impl Throttle {
    /// One that lets the first through.
    #[must_use]
    pub const fn new() -> Throttle {
        Throttle { next: AtomicU64::new(0), held_back: AtomicU64::new(0) }
    }

    /// Returns how many were held back since the last that passed, if this one may pass.
    pub fn pass(&self, now: Time) -> Option<u64> {
        let next = self.next.load(Ordering::Relaxed);
        let later = (now + APART).as_micros();
        let due = now.as_micros() >= next;
        if due && self.next.compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return Some(self.held_back.swap(0, Ordering::Relaxed));
        }
        self.held_back.fetch_add(1, Ordering::Relaxed);
        None
    }
}

impl Default for Throttle {
    fn default() -> Throttle {
        Throttle::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_passes_in_ten_seconds_and_says_how_many_did_not() {
        let throttle = Throttle::new();
        let at = |seconds: u64| Time::from_micros(seconds * 1_000_000);
        assert_eq!(throttle.pass(at(0)), Some(0));
        assert_eq!([throttle.pass(at(0)), throttle.pass(at(9))], [None, None]);
        assert_eq!(throttle.pass(at(10)), Some(2));
        assert_eq!(throttle.pass(at(11)), None);
    }
}
