//! Monotonic time as a value. The only home of `Instant::now`: everything else takes a [`Time`] as an argument or asks a
//! [`Clock`], so that policies, estimators and health run unchanged in virtual time.
//!
//! Hot path: `Clock::now` is one `clock_gettime` (vDSO), no allocation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A point in monotonic time: whole microseconds since the clock's origin. Integers, because a 32-bit float loses 60 ms
/// after half a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize)]
pub struct Time(u64);

impl Time {
    /// The clock's origin.
    pub const ZERO: Time = Time(0);

    /// A time so many microseconds after the origin.
    #[must_use]
    #[inline]
    pub const fn from_micros(micros: u64) -> Time {
        Time(micros)
    }

    /// Microseconds since the origin.
    #[must_use]
    #[inline]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`; zero if `earlier` is later.
    #[must_use]
    #[inline]
    pub const fn since(self, earlier: Time) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// Seconds passed since `earlier`; zero if `earlier` is later.
    #[must_use]
    #[inline]
    pub fn secs_since(self, earlier: Time) -> f64 {
        self.0.saturating_sub(earlier.0) as f64 * 1e-6
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Time;

    /// Saturates at the end of time, so that "never" can be a very long duration.
    fn add(self, rhs: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(rhs.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// A source of `now`: the system's monotonic clock, or a test's hand.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System(Instant),
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The system's monotonic clock; its origin is this call.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one home of Instant::now")]
    #[inline]
    pub fn system() -> Clock {
        Clock(Source::System(Instant::now()))
    }

    /// The present moment.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one home of Instant::now")]
    #[inline]
    pub fn now(&self) -> Time {
        match &self.0 {
            Source::System(origin) => {
                Time(u64::try_from(Instant::now().duration_since(*origin).as_micros()).unwrap_or(u64::MAX))
            }
            Source::Manual(micros) => Time(micros.load(Ordering::Acquire)),
        }
    }
}

/// A clock that stands still until it is moved; its `Clock` can be cloned into what is tested.
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// The clock that this hand moves.
    #[must_use]
    #[inline]
    pub fn clock(&self) -> Clock {
        Clock(Source::Manual(Arc::clone(&self.0)))
    }

    /// Moves time on.
    #[inline]
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_micros()).unwrap_or(u64::MAX), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_clock_moves_only_by_hand() {
        let hand = ManualClock::default();
        let clock = hand.clock();
        let before = clock.now();
        assert_eq!(clock.now(), before);
        hand.advance(Duration::from_millis(3));
        assert_eq!(clock.now().since(before), Duration::from_millis(3));
    }

    #[test]
    fn system_clock_never_goes_back() {
        let clock = Clock::system();
        let (a, b) = (clock.now(), clock.now());
        assert!(b >= a);
        assert_eq!(a.since(b), Duration::ZERO.max(a.since(b)));
    }

    #[test]
    fn adding_a_huge_duration_saturates() {
        assert_eq!((Time::from_micros(5) + Duration::MAX).as_micros(), u64::MAX);
    }
}
