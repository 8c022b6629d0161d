//! The progress watchdog: whether a backend that has work makes any progress at all. Pure: what is seen and the time come in as
//! arguments. It needs no deadline for a request, so a long queue and a long prompt are no failure: a working engine changes
//! something at every step, an event on a stream or a figure that it shows. (The count of steps stands still in a prefill with
//! nothing decoding; there the use of the KV cache moves.) It must never count the silence of a backend that nobody waits for,
//! nor that of an answer whose own client does not read.

use std::time::Duration;

use forebay_core::clock::Time;
use forebay_core::sample::Sample;

/// Without figures that would show progress, silence has to last so many times as long.
const BLIND: u32 = 3;
/// The longest time that one look can add: the watchdog, or the whole process, may have stood still meanwhile.
const LONGEST_STEP: Duration = Duration::from_secs(1);

/// The facts seen of a backend at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sight {
    /// Attempts on the engine whose answers we wait to read: their clients read, too.
    pub waiting: u32,
    /// Those of them that are streams: what shows something before its end.
    pub streams: u32,
    /// Counts token events and whole answers.
    pub progress: u64,
    /// The last sample and its time, if it is not too old.
    pub sample: Option<(Sample, Time)>,
}

/// The memory of one backend's watchdog.
#[derive(Clone, Debug, Default)]
pub struct Watchdog {
    last: Option<(Sight, Time)>,
    /// The last sample and its time, however old.
    sample: Option<(Sample, Time)>,
    silent: Duration,
    /// The part of `silent` during which streams waited, too.
    silent_streams: Duration,
    /// For how long its figures were *seen* to stand still: one that could not be read meanwhile may have moved.
    stood: Duration,
}

impl Watchdog {
    /// Takes a look. Once the backend has been silent for `limit` (three times as long where its figures do not say that it has
    /// work, or were not seen to stand still for all that time), says for how long, and begins anew. Where its figures were not seen
    /// to stand still at all, only streams count: an answer that is one document shows nothing before its end, however well its
    /// engine works.
    ///
    /// Clients that give up do not end the silence, and time in which nobody waits neither adds to it nor ends it.
    pub fn look(&mut self, sight: Sight, limit: Duration, now: Time) -> Option<Duration> {
        let (moved, stood) = self.compare(&sight);
        let last = self.last.replace((sight, now));
        if moved {
            self.begin_anew();
            return None;
        }
        // The first look has nothing to compare with.
        let (before, at) = last?;
        // Work at both ends of the span: an engine that was idle in between owes nobody a token.
        if before.waiting > 0 && sight.waiting > 0 {
            // A look that came late, on a busy machine, must not count as long silence of the engine.
            self.silent += now.since(at).min(LONGEST_STEP);
            self.stood += stood;
        }
        if before.streams > 0 && sight.streams > 0 {
            self.silent_streams += now.since(at).min(LONGEST_STEP);
        }
        let longer = limit.saturating_mul(BLIND);
        let would_move = sight.sample.is_some_and(|(sample, _)| sample.kv_usage.is_some() || sample.steps.is_some());
        let shows_work = sight.sample.is_some_and(|(sample, _)| shows_work(sample));
        // First: the figures say that there is work, and stood still. Second: they do not say so, but would have moved.
        // Third: without figures only streams tell, since an answer in one document is silent up to its end.
        let found = [
            (sight.waiting, self.silent, shows_work && self.stood >= limit, limit),
            (sight.waiting, self.silent, would_move && self.stood >= longer, longer),
            (sight.streams, self.silent_streams, true, longer),
        ];
        let found = found.into_iter().find(|(waiting, silent, seen, limit)| *waiting > 0 && *seen && silent >= limit);
        // Once it is told the count begins at zero, or every later look would tell it again.
        let (_, silent, ..) = found?;
        self.begin_anew();
        Some(silent)
    }

    fn begin_anew(&mut self) {
        (self.silent, self.silent_streams, self.stood) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    }

    /// Returns whether anything shows progress since the last look, and for how long a new sample shows that nothing moved.
    fn compare(&mut self, sight: &Sight) -> (bool, Duration) {
        let (mut moved, mut stood) = (false, Duration::ZERO);
        if let (Some((old, before)), Some((new, at))) = (self.sample, sight.sample) {
            moved = differs(&old, &new);
            stood = at.since(before);
        }
        // Kept over looks without a fresh sample, so that what moved meanwhile is seen by the next one.
        self.sample = sight.sample.or(self.sample);
        (moved || self.last.is_some_and(|(last, _)| last.progress != sight.progress), stood)
    }
}

/// Returns whether the figures say that there is work, and are such as would move.
fn shows_work(sample: Sample) -> bool {
    let busy = sample.running.zip(sample.waiting).is_some_and(|(running, waiting)| running + waiting > 0.0);
    busy && (sample.kv_usage.is_some() || sample.steps.is_some())
}

/// Returns whether a figure that both samples have is another one. An absent one shows nothing.
pub(crate) fn differs(old: &Sample, new: &Sample) -> bool {
    let pairs =
        [(old.steps, new.steps), (old.kv_usage, new.kv_usage), (old.running, new.running), (old.waiting, new.waiting)];
    #[expect(clippy::float_cmp, reason = "the same text gives the same number: any difference is a change")]
    pairs.into_iter().any(|(old, new)| old.zip(new).is_some_and(|(old, new)| old != new))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);
    const TICK: Duration = Duration::from_millis(500);

    fn sample(steps: f64, kv_usage: f64) -> Sample {
        Sample {
            steps: Some(steps),
            kv_usage: Some(kv_usage),
            running: Some(1.0),
            waiting: Some(0.0),
            ..Sample::default()
        }
    }

    /// Returns a sight as of now; `found_after` and the others fill in the time.
    fn waits(sample: Option<Sample>) -> Sight {
        Sight { waiting: 1, streams: 1, progress: 0, sample: sample.map(|sample| (sample, Time::ZERO)) }
    }

    fn taken(sight: Sight, at: Time) -> Sight {
        Sight { sample: sight.sample.map(|(sample, _)| (sample, at)), ..sight }
    }

    /// The seconds after which it is found to hang, if it is within ten minutes.
    fn found_after(mut sight: impl FnMut(f64) -> Sight) -> Option<f64> {
        let (mut dog, mut now) = (Watchdog::default(), Time::from_micros(1));
        for tick in 0..1200_u32 {
            let seconds = f64::from(tick) * TICK.as_secs_f64();
            if dog.look(taken(sight(seconds), now), LIMIT, now).is_some() {
                return Some(seconds);
            }
            now = now + TICK;
        }
        None
    }

    #[test]
    fn an_engine_that_stands_still_with_work_is_found() {
        assert_eq!(found_after(|_| waits(Some(sample(7.0, 0.5)))), Some(20.0));
    }

    #[test]
    fn without_figures_and_with_figures_that_deny_the_work_it_takes_three_times_as_long() {
        let idle = Sample { running: Some(0.0), ..sample(7.0, 0.5) };
        let renamed = Sample { steps: None, kv_usage: None, ..sample(7.0, 0.5) };
        for sample in [None, Some(idle), Some(renamed), Some(Sample::default())] {
            assert_eq!(found_after(|_| waits(sample)), Some(60.0), "{sample:?}");
        }
    }

    #[test]
    fn a_document_that_is_waited_for_proves_nothing_unless_the_figures_were_seen_to_stand_still() {
        let document = |sample| Sight { streams: 0, ..waits(sample) };
        let idle = Sample { running: Some(0.0), ..sample(7.0, 0.5) };
        let renamed = Sample { steps: None, kv_usage: None, ..sample(7.0, 0.5) };
        for sample in [None, Some(renamed), Some(Sample::default())] {
            assert_eq!(found_after(|_| document(sample)), None, "{sample:?}");
        }
        assert_eq!(found_after(|_| document(Some(sample(7.0, 0.5)))), Some(20.0));
        // Stopped while it was idle: a working engine would have moved.
        assert_eq!(found_after(|_| document(Some(idle))), Some(60.0));
        // A stream or two among documents is waited for in its own right.
        let streams = |seconds: f64| Sight { waiting: 3, streams: u32::from(seconds % 80.0 > 10.0), ..waits(None) };
        assert_eq!(found_after(streams), Some(70.5));
    }

    #[test]
    fn a_prefill_of_many_chunks_moves_only_the_kv_cache_and_is_no_hang() {
        assert_eq!(found_after(|seconds| waits(Some(sample(7.0, (seconds / 1.0).floor() * 1e-4)))), None);
    }

    #[test]
    fn any_one_sign_of_progress_is_enough() {
        let every = |seconds: f64| (seconds / 15.0).floor();
        assert_eq!(found_after(|s| waits(Some(sample(every(s), 0.5)))), None);
        assert_eq!(found_after(|s| waits(Some(Sample { running: Some(1.0 + every(s)), ..sample(7.0, 0.5) }))), None);
        assert_eq!(found_after(|s| waits(Some(Sample { waiting: Some(every(s)), ..sample(7.0, 0.5) }))), None);
        let events = |s: f64| Sight { progress: every(s) as u64, ..waits(Some(sample(7.0, 0.5))) };
        assert_eq!(found_after(events), None);
    }

    #[test]
    fn a_backend_that_nobody_waits_for_is_not_judged() {
        assert_eq!(found_after(|_| Sight { waiting: 0, streams: 0, ..waits(Some(sample(7.0, 0.5))) }), None);
    }

    #[test]
    fn clients_that_give_up_after_five_seconds_do_not_hide_a_hang() {
        let waiting = |seconds: f64| u32::from(seconds % 6.0 < 5.0);
        let leaving = |s: f64| Sight { waiting: waiting(s), streams: waiting(s), ..waits(Some(sample(7.0, 0.5))) };
        let found = found_after(leaving).unwrap();
        assert!((20.0..30.0).contains(&found), "{found}");
    }

    #[test]
    fn figures_that_come_and_go_are_no_progress() {
        let fresh = |seconds: f64| (seconds % 4.0 < 2.0).then(|| sample(7.0, 0.5));
        assert!(found_after(|seconds| waits(fresh(seconds))).is_some_and(|found| found <= 60.0));
    }

    #[test]
    fn figures_that_could_not_be_read_meanwhile_may_have_moved() {
        // One scrape, believed for a while, and then no other: a server too busy to answer.
        let (mut dog, mut now, scraped) = (Watchdog::default(), Time::ZERO, Time::ZERO);
        let mut found = None;
        while found.is_none() {
            now = now + TICK;
            let sight = taken(waits(Some(sample(7.0, 0.5))), scraped);
            found = dog.look(sight, LIMIT, now);
        }
        assert_eq!(found, Some(LIMIT * BLIND));
    }

    #[test]
    fn a_process_that_stood_still_does_not_blame_the_backends() {
        let mut dog = Watchdog::default();
        let sight = waits(Some(sample(7.0, 0.5)));
        for seconds in [0, 300, 600, 900] {
            let now = Time::from_micros(seconds * 1_000_000);
            assert_eq!(dog.look(taken(sight, now), LIMIT, now), None);
        }
    }

    proptest! {
        #[test]
        fn who_shows_something_within_the_limit_is_never_found_and_who_never_does_always(
            looks in prop::collection::vec((0_u32..4, 1_u64..1000, any::<bool>()), 1..400),
        ) {
            let (mut quiet, mut lively) = (Watchdog::default(), Watchdog::default());
            let (mut now, mut silence, mut waited, mut progress) = (Time::ZERO, Duration::ZERO, Duration::ZERO, 0);
            let (mut found, mut before) = (false, 0);
            for (waiting, ms, fresh) in looks {
                let step = Duration::from_millis(ms);
                now = now + step;
                silence += step;
                if silence + Duration::from_secs(1) >= LIMIT {
                    (silence, progress) = (Duration::ZERO, progress + 1);
                }
                if waiting > 0 && before > 0 {
                    waited += step;
                }
                before = waiting;
                let sight = Sight { waiting, streams: waiting, progress, sample: fresh.then(|| (sample(7.0, 0.5), now)) };
                prop_assert_eq!(lively.look(sight, LIMIT, now), None);
                found |= quiet.look(Sight { progress: 0, ..sight }, LIMIT, now).is_some();
                prop_assert!(waited < LIMIT * BLIND || waiting == 0 || found);
                prop_assert!(waited >= LIMIT - step || !found);
            }
        }
    }
}
