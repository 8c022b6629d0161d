//! A token bucket that may be in debt: the level rises by the limit's rate up to its size, and what turns out to cost more than was
//! taken makes it negative. Time comes in as `now`.
//!
//! Hot path: a multiplication and an addition; no allocation.

use std::time::Duration;

use serde::Serialize;

use crate::clock::Time;

/// The part of a limit that a bucket holds, unless it is told another size.
const PART: f64 = 0.1;
/// The part of a unit that rounding may take away: a client that comes back exactly when it was told to is not sent away again.
const ROUNDING: f64 = 1e-6;

/// A limit by the minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PerMinute {
    /// The units that a minute brings.
    pub limit: u32,
    /// The units that may be used at once, where that is not a tenth of the limit.
    pub burst: Option<u32>,
}

impl PerMinute {
    /// A limit with a bucket of a tenth of it.
    #[must_use]
    pub fn of(limit: u32) -> PerMinute {
        PerMinute { limit, burst: None }
    }

    /// Units that a second brings.
    fn rate(self) -> f64 {
        f64::from(self.limit) / 60.0
    }

    /// Units that may be used at once, at least 1.
    #[must_use]
    pub fn size(self) -> f64 {
        self.burst.map_or_else(|| f64::from(self.limit) * PART, f64::from).max(1.0)
    }
}

/// The units that one client may use now.
#[derive(Clone, Debug)]
pub struct Bucket {
    limit: PerMinute,
    /// The level at `at`; negative is a debt.
    level: f64,
    at: Time,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn full(limit: PerMinute, now: Time) -> Bucket {
        Bucket { limit, level: limit.size(), at: now }
    }

    /// The limit.
    #[must_use]
    pub fn limit(&self) -> PerMinute {
        self.limit
    }

    /// The level; negative is a debt.
    #[must_use]
    pub fn level(&self, now: Time) -> f64 {
        (self.level + self.limit.rate() * now.secs_since(self.at)).min(self.limit.size())
    }

    /// Returns how long it takes until a request of `amount` may pass; `None` if it may now. More than a full bucket is never asked
    /// for: what is larger passes when the bucket is full, and leaves a debt.
    #[must_use]
    pub fn wait_for(&self, amount: f64, now: Time) -> Option<Duration> {
        let missing = amount.min(self.limit.size()) - self.level(now);
        (missing > ROUNDING).then(|| Duration::from_secs_f64(missing / self.limit.rate()))
    }

    /// Takes `amount`, also where there is less.
    pub fn take(&mut self, amount: f64, now: Time) {
        self.level = self.level(now) - amount;
        // A clock that is read by several threads may give two of them their times in the other order.
        self.at = self.at.max(now);
    }

    /// Gives `amount` back; what does not fit is lost.
    pub fn give_back(&mut self, amount: f64, now: Time) {
        self.take(-amount, now);
        self.level = self.level.min(self.limit.size());
    }

    /// Returns how long it takes until it is full.
    #[must_use]
    pub fn until_full(&self, now: Time) -> Duration {
        Duration::from_secs_f64((self.limit.size() - self.level(now)).max(0.0) / self.limit.rate())
    }

    /// Takes another limit. The level stays, debts too.
    pub fn retune(&mut self, limit: PerMinute, now: Time) {
        let level = self.level(now);
        *self = Bucket { limit, level: level.min(limit.size()), at: self.at.max(now) };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: f64) -> Time {
        Time::ZERO + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_bucket_holds_a_tenth_of_its_limit_and_at_least_one() {
        for (limit, burst, size) in [(600, None, 60.0), (5, None, 1.0), (600, Some(7), 7.0), (1, None, 1.0)] {
            assert_eq!(PerMinute { limit, burst }.size(), size, "{limit} {burst:?}");
        }
    }

    #[test]
    fn a_debt_is_paid_before_anything_passes() {
        let mut bucket = Bucket::full(PerMinute::of(600), at(0.0));
        bucket.take(160.0, at(0.0));
        assert_eq!(bucket.wait_for(1.0, at(0.0)), Some(Duration::from_millis(10_100)));
        assert_eq!(bucket.wait_for(1.0, at(10.1)), None);
        assert_eq!(bucket.wait_for(1000.0, at(0.0)), Some(Duration::from_secs(16)), "no more than a full bucket");
        bucket.give_back(500.0, at(0.0));
        assert_eq!(bucket.level(at(0.0)), 60.0);
    }

    #[test]
    fn another_limit_forgives_no_debt() {
        let mut bucket = Bucket::full(PerMinute::of(600), at(0.0));
        bucket.take(100.0, at(0.0));
        bucket.retune(PerMinute::of(6000), at(0.0));
        assert_eq!(bucket.level(at(0.0)), -40.0);
        bucket.retune(PerMinute::of(6), at(100.0));
        assert_eq!(bucket.level(at(100.0)), 1.0);
    }

    proptest! {
        /// No client gets more than the minutes brought and one bucket, and one that comes back when it was told to
        /// passes.
        #[test]
        fn nobody_gets_more_than_time_and_one_bucket(
            limit in 1_u32..100_000,
            burst in prop::option::of(1_u32..1000),
            steps in prop::collection::vec((0.0_f64..20.0, 1.0_f64..50.0), 1..200),
        ) {
            let limit = PerMinute { limit, burst };
            let mut bucket = Bucket::full(limit, at(0.0));
            let (mut now, mut passed) = (0.0, 0.0);
            for (pause, amount) in steps {
                now += pause;
                match bucket.wait_for(amount, at(now)) {
                    None => {
                        bucket.take(amount, at(now));
                        passed += amount;
                    }
                    Some(wait) => prop_assert_eq!(bucket.wait_for(amount, at(now) + wait + Duration::from_micros(1)), None),
                }
                prop_assert!(bucket.level(at(now)) <= limit.size() + 1e-9);
                // One request may be larger than the bucket.
                let most = f64::from(limit.limit) / 60.0 * now + limit.size() + (amount - limit.size()).max(0.0).max(50.0 - limit.size());
                prop_assert!(passed <= most + 1e-3, "{passed} of {most}");
            }
        }
    }
}
