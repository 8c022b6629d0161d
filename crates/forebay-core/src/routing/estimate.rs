//! Estimators that forget: ratios of seconds measured to seconds expected, and rates. Each stores its sums as of its last
//! observation and decays them when *read*: an estimator that decayed only when fed would keep a recovered backend out for
//! as long as nobody tries it. Never NaN, never negative, never above the largest ratio that went in (or its prior).
//!
//! Hot path: a few multiplications, one division; no `exp`, no allocation.

use serde::Serialize;

use crate::clock::Time;

/// Seconds over which measured TTFT is forgotten (tau_k). Half costs 5 %, double nothing.
pub const TTFT_TAU: f64 = 15.0;
/// A backend that joins, returns or restarts is remembered for this share of the time since its first request, until that
/// reaches `TTFT_TAU`: an engine is slow while it is cold, and its first samples would keep it out long after.
pub const TTFT_TAU_OF_AGE: f64 = 1.0 / 3.0;
/// Seconds over which TTFT is forgotten at least, however new a backend is.
pub const TTFT_TAU_LEAST: f64 = 1.0;
/// Seconds without a dispatch after which a pool is idle, and one second of it counts as `IDLE_PACE`.
pub const IDLE_AFTER: f64 = 1.0;
/// The part of idle time for which measured TTFT ages: nothing could be learned meanwhile, and a backend is most likely what
/// it was. At this pace five minutes of idling forget as much as fifteen seconds of traffic.
pub const IDLE_PACE: f64 = 0.05;
/// Seconds of expected TTFT by which a backend's ratio leans on its pool's (m_k). Half or double: at most 6 % in the study that the
/// formula is from; not run again here.
pub const TTFT_PRIOR: f64 = 1.0;
/// Seconds of expected TTFT by which the pool's ratio leans on 1 before the first samples. Samples replace it second for second: a
/// lean that stayed would make backends without samples look slower than one that was tried, and so never be tried.
pub const TTFT_POOL_PRIOR: f64 = 0.5;
/// Independent samples up to which a backend whose requests waited together is taken for its pool, and from which its own ratio
/// stands. Requests that waited together saw the same steps: they count as one sample, however many they were. After a storm that
/// met equal servers unequal, they share alike with this, and one gets everything without.
pub const TTFT_UNTRUSTED: f64 = 1.5;
/// See `TTFT_UNTRUSTED`.
pub const TTFT_TRUSTED: f64 = 2.5;
/// Share of its wait that a request waited alone, on average, up to which requests waited together; from twice that, they did not.
pub const TTFT_ALONE: f64 = 0.15;
/// Seconds over which a backend's gaps between tokens are forgotten (tau_g). Half or double: at most 4 % (double: TPOT 6 %).
pub const GAP_TAU: f64 = 2.0;
/// Seconds of expected gap by which a backend's ratio leans on its pool's (m_g). Half or double: at most 6 % in that study; not run
/// again here with sessions.
pub const GAP_PRIOR: f64 = 0.2;
/// Seconds over which the pool's gaps are forgotten; longer than a backend's, since it is what they fall back to.
pub const GAP_POOL_TAU: f64 = 10.0;
/// Seconds of expected gap by which the pool's gap ratio leans on 1.
pub const GAP_POOL_PRIOR: f64 = 0.2;
/// Seconds over which completions are forgotten; matters only past the KV wall.
pub const DONE_TAU: f64 = 10.0;
/// Tokens of a prompt that nothing is known of: what a foreign request is taken for at the start.
pub const PROMPT_PRIOR: f64 = 500.0;
/// Requests that `PROMPT_PRIOR` weighs against what was seen. Only foreign waiting requests are scaled by it.
pub const PROMPT_PRIOR_WEIGHT: f64 = 1.0;
/// Seconds over which prompt lengths are forgotten.
pub const PROMPT_TAU: f64 = 60.0;

/// exp(-elapsed / tau) as (1 - x/8)^8, zero from 8 tau on. Between 0 and 1, falling with `elapsed`.
#[must_use]
#[inline]
pub fn decay(elapsed: f64, tau: f64) -> f64 {
    let base = (1.0 - elapsed * (0.125 / tau)).clamp(0.0, 1.0);
    let squared = base * base;
    let fourth = squared * squared;
    fourth * fourth
}

/// A pool's own time, which nearly stands still while nothing is dispatched.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// The pool's time at the last dispatch.
    lived: f64,
    at: Time,
}

impl Pace {
    /// A request is dispatched.
    #[inline]
    pub fn dispatch(&mut self, now: Time) {
        self.lived = self.seconds(now);
        self.at = self.at.max(now);
    }

    /// The pool's time as of `now`. Writes nothing.
    #[must_use]
    #[inline]
    pub fn lived(&self, now: Time) -> Time {
        Time::from_micros((self.seconds(now) * 1e6) as u64)
    }

    #[inline]
    fn seconds(&self, now: Time) -> f64 {
        let gap = now.secs_since(self.at);
        let idle = (gap - IDLE_AFTER).max(0.0);
        self.lived + (gap - idle) + idle * IDLE_PACE
    }
}

/// A measured sum beside the expected one, both in the same unit and both decayed alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Evidence {
    /// Sum of what was measured.
    pub measured: f64,
    /// Sum of what was expected; the weight of the evidence.
    pub expected: f64,
}

impl Evidence {
    /// Measured over expected, leaning on `prior` by `weight` units of expectation.
    #[must_use]
    #[inline]
    pub fn ratio(self, prior: f64, weight: f64) -> f64 {
        (self.measured + weight * prior) / (self.expected + weight)
    }

    /// The sum of both.
    #[must_use]
    #[inline]
    pub fn plus(self, other: Evidence) -> Evidence {
        Evidence { measured: self.measured + other.measured, expected: self.expected + other.expected }
    }

    /// Both parts times `factor`.
    #[must_use]
    #[inline]
    pub fn times(self, factor: f64) -> Evidence {
        Evidence { measured: self.measured * factor, expected: self.expected * factor }
    }
}

/// Evidence with the moment of its last observation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DecayedRatio {
    sums: Evidence,
    at: Time,
}

impl DecayedRatio {
    /// Adds one observation. An absurd one (not finite, negative, or nothing expected) is left out.
    #[inline]
    pub fn observe(&mut self, measured: f64, expected: f64, now: Time, tau: f64) {
        if !(measured.is_finite() && measured >= 0.0 && expected.is_finite() && expected > 0.0) {
            return;
        }
        self.sums = self.read(now, tau).plus(Evidence { measured, expected });
        self.at = self.at.max(now);
    }

    /// The evidence as of `now`. Writes nothing.
    #[must_use]
    #[inline]
    pub fn read(&self, now: Time, tau: f64) -> Evidence {
        self.sums.times(decay(now.secs_since(self.at), tau))
    }
}

/// Measured TTFT of one backend beside what was expected, in its pool's time. A new one's is forgotten sooner.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TtftRatio {
    ratio: DecayedRatio,
    /// Independent samples, forgotten as the ratio is.
    samples: DecayedRatio,
    /// Its first request since it joined, returned or restarted.
    since: Option<Time>,
}

impl TtftRatio {
    /// A request goes out.
    #[inline]
    pub fn dispatch(&mut self, lived: Time) {
        self.since.get_or_insert(lived);
    }

    /// The backend is new again: its next request is its first.
    #[inline]
    pub fn renew(&mut self) {
        self.since = None;
    }

    /// Adds one observation, as `DecayedRatio` does.
    #[inline]
    pub fn observe(&mut self, measured: f64, expected: f64, lived: Time) {
        let tau = self.tau(lived);
        // The share of its wait in which no other sample came: what it saw that the one before it did not.
        let alone = (lived.secs_since(self.samples.at) / measured.max(1e-6)).min(1.0);
        self.samples.observe(alone, 1.0, lived, tau);
        self.ratio.observe(measured, expected, lived, tau);
    }

    /// Returns how far the ratio stands for the backend and not for its pool, 0 to 1.
    #[must_use]
    #[inline]
    pub fn trust(&self, lived: Time) -> f64 {
        let seen = self.samples.read(lived, self.tau(lived));
        let enough = (seen.measured - TTFT_UNTRUSTED) / (TTFT_TRUSTED - TTFT_UNTRUSTED);
        // Few samples, but each for itself: the lean on the pool is doubt enough.
        let alone = if seen.expected > 0.0 { seen.measured / seen.expected / TTFT_ALONE - 1.0 } else { 1.0 };
        enough.max(alone).clamp(0.0, 1.0)
    }

    /// The evidence as of `lived`. Writes nothing.
    #[must_use]
    #[inline]
    pub fn read(&self, lived: Time) -> Evidence {
        self.ratio.read(lived, self.tau(lived))
    }

    #[inline]
    fn tau(&self, lived: Time) -> f64 {
        let age = self.since.map_or(0.0, |since| lived.secs_since(since));
        (age * TTFT_TAU_OF_AGE).clamp(TTFT_TAU_LEAST, TTFT_TAU)
    }
}

/// Events a second, forgotten over `DONE_TAU`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DecayedRate {
    sum: f64,
    at: Time,
}

impl DecayedRate {
    /// Counts `count` events.
    #[inline]
    pub fn observe(&mut self, count: u32, now: Time) {
        self.sum = self.sum * decay(now.secs_since(self.at), DONE_TAU) + f64::from(count);
        self.at = self.at.max(now);
    }

    /// Events a second as of `now`.
    #[must_use]
    #[inline]
    pub fn read(&self, now: Time) -> f64 {
        self.sum * decay(now.secs_since(self.at), DONE_TAU) * (1.0 / DONE_TAU)
    }
}

/// The pool's TTFT ratio from the evidence of its eligible backends: what a backend without samples is taken for.
#[must_use]
#[inline]
pub fn pool_ttft_ratio(sum: Evidence) -> f64 {
    let lean = TTFT_POOL_PRIOR - sum.expected;
    if lean > 0.0 { sum.ratio(1.0, lean) } else { sum.measured / sum.expected }
}

/// The pool's gap ratio from the slowly decayed evidence of its eligible backends.
#[must_use]
#[inline]
pub fn pool_gap_ratio(sum: Evidence) -> f64 {
    sum.ratio(1.0, GAP_POOL_PRIOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn decay_is_close_to_the_exponential_and_ends_at_zero() {
        for (elapsed, exact) in [(0.0, 1.0), (1.5, 0.905), (15.0, 0.368), (30.0, 0.135)] {
            assert!((decay(elapsed, 15.0) - exact).abs() < 0.036, "{elapsed}");
        }
        assert_eq!(decay(120.0, 15.0), 0.0);
        assert_eq!(decay(1e12, 15.0), 0.0);
        assert_eq!(decay(-1.0, 15.0), 1.0);
    }

    #[test]
    fn an_estimator_decays_when_read_and_not_only_when_fed() {
        let mut gaps = DecayedRatio::default();
        gaps.observe(0.5, 0.1, Time::ZERO, GAP_TAU);
        let at_once = gaps.read(Time::ZERO, GAP_TAU).ratio(1.0, GAP_PRIOR);
        let later = gaps.read(Time::ZERO + Duration::from_secs(4), GAP_TAU).ratio(1.0, GAP_PRIOR);
        let much_later = gaps.read(Time::ZERO + Duration::from_secs(40), GAP_TAU).ratio(1.0, GAP_PRIOR);
        assert!(at_once > later && later > much_later, "{at_once} {later} {much_later}");
        assert_eq!(much_later, 1.0);
    }

    #[test]
    fn a_pool_ages_with_its_traffic_and_hardly_without() {
        let mut pace = Pace::default();
        let second = |second: u64| Time::from_micros(second * 1_000_000);
        for now in 1..=60 {
            pace.dispatch(second(now));
        }
        assert_eq!(pace.lived(second(60)), second(60));
        assert_eq!(pace.lived(second(61)), second(61));
        assert_eq!(pace.lived(second(121)), second(64), "sixty idle seconds count as three");
        pace.dispatch(second(121));
        assert_eq!(pace.lived(second(122)), second(65));
    }

    #[test]
    fn a_new_backend_s_first_samples_are_forgotten_within_its_age() {
        let second = |second: u64| Time::from_micros(second * 1_000_000);
        let cold_start = |from: u64| {
            let mut ratio = TtftRatio::default();
            ratio.dispatch(second(from));
            ratio.observe(10.0, 1.0, second(100));
            for now in 101..=110 {
                ratio.observe(1.0, 1.0, second(now));
            }
            ratio
        };
        let seen = |ratio: TtftRatio| ratio.read(second(110)).ratio(1.0, TTFT_PRIOR);
        let (new, old) = (cold_start(98), cold_start(0));
        assert!(seen(new) < 1.1 && seen(old) > 1.4, "{} {}", seen(new), seen(old));
        let mut returned = old;
        returned.renew();
        returned.dispatch(second(110));
        let left = returned.read(second(120)).expected;
        assert!(left < 0.5, "what it was before is soon forgotten: {left}");
    }

    #[test]
    fn requests_that_waited_together_are_one_sample_and_those_that_waited_alone_are_many() {
        let second = |second: u64| Time::from_micros(second * 1_000_000);
        let (mut storm, mut steady, mut few) = (TtftRatio::default(), TtftRatio::default(), TtftRatio::default());
        assert_eq!(storm.trust(second(0)), 1.0, "without samples there is nothing to distrust");
        for ratio in [&mut storm, &mut steady, &mut few] {
            ratio.dispatch(second(0));
        }
        for _ in 0..100 {
            storm.observe(10.0, 1.0, second(60));
        }
        (41..=60).for_each(|now| steady.observe(10.0, 1.0, second(now)));
        few.observe(10.0, 1.0, second(60));
        assert_eq!(storm.trust(second(60)), 0.0, "a hundred that waited for the same ten seconds");
        assert_eq!(steady.trust(second(60)), 0.0, "twenty that each waited with nine others are two, and less since");
        assert_eq!(few.trust(second(60)), 1.0, "one that waited alone");
        (61..=300).for_each(|now| steady.observe(2.0, 1.0, second(now)));
        assert_eq!(steady.trust(second(300)), 1.0);
    }

    #[test]
    fn absurd_observations_are_left_out() {
        let mut ratio = DecayedRatio::default();
        for (measured, expected) in
            [(f64::NAN, 1.0), (1.0, f64::NAN), (f64::INFINITY, 1.0), (-1.0, 1.0), (1.0, 0.0), (1.0, -3.0)]
        {
            ratio.observe(measured, expected, Time::ZERO, 1.0);
        }
        assert_eq!(ratio, DecayedRatio::default());
    }

    #[test]
    fn a_rate_counts_events_a_second() {
        let mut rate = DecayedRate::default();
        for tenth in 0..1200_u64 {
            rate.observe(1, Time::from_micros(tenth * 100_000));
        }
        let seen = rate.read(Time::from_micros(119_900_000));
        assert!((8.0..12.0).contains(&seen), "{seen}");
        assert_eq!(rate.read(Time::from_micros(500_000_000)), 0.0);
    }

    proptest! {
        #[test]
        fn a_ratio_is_never_negative_or_nan_and_never_above_its_largest_input(
            steps in prop::collection::vec((any::<f64>(), any::<f64>(), 0_u64..60_000_000), 0..50),
            sane in prop::collection::vec((0.0..1e3_f64, 1e-4..1e3_f64, 0_u64..60_000_000), 0..50),
            prior in 0.0..100.0_f64,
        ) {
            let (mut ratio, mut now, mut largest) = (DecayedRatio::default(), Time::ZERO, prior);
            for (measured, expected, micros) in sane {
                now = now + Duration::from_micros(micros);
                ratio.observe(measured, expected, now, TTFT_TAU);
                largest = largest.max(measured / expected);
                let value = ratio.read(now, TTFT_TAU).ratio(prior, TTFT_PRIOR);
                prop_assert!(value >= 0.0 && value <= largest * (1.0 + 1e-9), "{value} over {largest}");
            }
            let mut wild = DecayedRatio::default();
            for (measured, expected, micros) in steps {
                now = now + Duration::from_micros(micros);
                wild.observe(measured.clamp(-1e9, 1e9), expected.clamp(-1e9, 1e9), now, TTFT_TAU);
                let value = wild.read(now, TTFT_TAU).ratio(prior, TTFT_PRIOR);
                prop_assert!(value >= 0.0 && value.is_finite(), "{value}");
            }
        }
    }
}
