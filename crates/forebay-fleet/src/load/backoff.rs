//! For how long a backend is left alone after a failure, and when it may be tried again; and how many failures there were in
//! a row. Passive: fed by attempts, takes no backend out of its pool (that is health's, which asks for the row), and a backend
//! that is merely full is never left alone for longer each time.
//!
//! Hot path: a few comparisons.

use std::time::Duration;

use forebay_core::clock::Time;

/// Half of the first pause: doubled for each failure, so 1 s, 2 s, 4 s, …
const HALF_BASE: Duration = Duration::from_millis(500);
/// The longest pause, after failures and for a backend that asks for one (Retry-After).
const LONGEST: Duration = Duration::from_secs(30);

/// The back-off of one backend.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    /// Pauses since the last success: failures, but only one for each time that it was left alone.
    pauses: u32,
    failed_until: Time,
    busy_until: Time,
    /// Times that it was left alone as busy, without a success of an attempt that was sent after the last.
    busy_row: u32,
    /// Attempts numbered from here on were dispatched after its last such answer.
    busy_mark: u64,
    /// Attempts numbered from here on were dispatched after the last failure.
    mark: u64,
    /// Those of them that are still out: half-open lets one be.
    probes: u32,
    /// Failures since the end of an attempt that was dispatched after the last one and succeeded: what ejects.
    failures_in_a_row: u32,
    /// It was out, and the next success shows that it is back.
    on_trial: bool,
}

impl Backoff {
    /// A blamed failure. While the backend is left alone for the last one it is no new one: thirty streams cut at once are
    /// one failure. `next` is the number of the next attempt. Whether it was a new one, which `withdraw` takes back.
    pub(crate) fn failure(&mut self, now: Time, next: u64) -> bool {
        // Attempts that went out before this failure say nothing of the time after it, neither good nor bad.
        self.mark = next;
        self.probes = 0;
        // Ten attempts that fail together are one failure: the pause must not double ten times.
        if self.pauses > 0 && now < self.failed_until {
            return false;
        }
        self.pauses = self.pauses.saturating_add(1);
        self.failed_until = now + (HALF_BASE * (1 << self.pauses.min(6))).min(LONGEST);
        true
    }

    /// A new failure turned out to be the request's doing.
    pub(crate) fn withdraw(&mut self) {
        self.pauses = self.pauses.saturating_sub(1);
        self.failed_until = Time::ZERO;
    }

    /// Backpressure: left alone for at most `pause`, which is what the backend asks for, and no failure. It was one answer to one
    /// client, which may be all that it concerns, as a limit on that client's key does. So the first such answer is good for a second,
    /// and one that follows without a success between them for twice as long. `next` is the number of the next attempt.
    pub(crate) fn busy(&mut self, pause: Duration, now: Time, next: u64) {
        self.busy_mark = next;
        // What was sent at the same time says nothing new.
        if self.busy_row == 0 || now >= self.busy_until {
            self.busy_row = self.busy_row.saturating_add(1);
        }
        self.leave_alone(pause.min(HALF_BASE * (1 << self.busy_row.min(6))), now);
    }

    /// The backend is left alone for so long, which is no failure.
    pub(crate) fn leave_alone(&mut self, pause: Duration, now: Time) {
        // A short Retry-After does not cut a longer one that is still running.
        self.busy_until = self.busy_until.max(now + pause.min(LONGEST));
    }

    /// A failure counts: how many that makes in a row.
    pub(crate) fn count(&mut self) -> u32 {
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        self.failures_in_a_row
    }

    /// The success of this attempt, so far: counts if it was dispatched after the last failure. Streams that began before it end
    /// well on a server that drains. Whether it ends a trial.
    pub(crate) fn success(&mut self, attempt: u64) -> bool {
        if attempt >= self.busy_mark {
            self.busy_row = 0;
        }
        if attempt < self.mark {
            return false;
        }
        self.pauses = 0;
        std::mem::take(&mut self.on_trial)
    }

    /// Notes the end of a whole answer, and returns whether it ends a trial. The row is broken only now: a first token is no whole answer.
    pub(crate) fn finished(&mut self, attempt: u64) -> bool {
        if attempt >= self.mark {
            // A whole answer proves more than a first token: engines die in the middle of answers.
            self.failures_in_a_row = 0;
        }
        self.success(attempt)
    }

    /// It is back after an ejection: nothing is held against it.
    pub(crate) fn forgive(&mut self) {
        (self.pauses, self.failures_in_a_row, self.on_trial) = (0, 0, false);
    }

    /// It may be back: one attempt, from number `next` on, is let through to show it.
    pub(crate) fn try_out(&mut self, next: u64) {
        // Open at once, and still with a failure to its name: one attempt at a time, until one has succeeded.
        (self.pauses, self.failed_until) = (self.pauses.max(1), Time::ZERO);
        (self.mark, self.probes, self.on_trial) = (next, 0, true);
    }

    /// An attempt goes out.
    pub(crate) fn enter(&mut self) {
        self.probes += 1;
    }

    /// This attempt is over, however it ended.
    pub(crate) fn leave(&mut self, attempt: u64) {
        if attempt >= self.mark {
            self.probes = self.probes.saturating_sub(1);
        }
    }

    /// Pauses since the last success.
    pub(crate) fn pauses(&self) -> u32 {
        self.pauses
    }

    /// For how much longer it is left alone.
    pub(crate) fn open_for(&self, now: Time) -> Duration {
        // A success since then has ended the pause, whatever was left of it.
        let failed_until = if self.pauses > 0 { self.failed_until } else { Time::ZERO };
        let until = failed_until.max(self.busy_until);
        if until > now { until.since(now) } else { Duration::ZERO }
    }

    /// An attempt dispatched after the last failure is out.
    pub(crate) fn probing(&self) -> bool {
        self.probes > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_micros(ms * 1000)
    }

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        let (mut backoff, mut now, mut pauses) = (Backoff::default(), at(5), Vec::new());
        for _ in 0..8 {
            backoff.failure(now, 0);
            pauses.push(backoff.open_for(now).as_millis());
            now = now + backoff.open_for(now);
        }
        assert_eq!(pauses, [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(backoff.open_for(now), Duration::ZERO);
    }

    #[test]
    fn thirty_streams_cut_at_once_are_one_failure() {
        let mut backoff = Backoff::default();
        for ms in 0..30 {
            backoff.failure(at(ms), 30);
        }
        assert_eq!((backoff.pauses(), backoff.open_for(at(29))), (1, Duration::from_millis(971)));
    }

    #[test]
    fn a_failure_that_was_the_requests_doing_is_taken_back() {
        let mut backoff = Backoff::default();
        assert!(backoff.failure(at(0), 1));
        assert!(!backoff.failure(at(1), 2), "the same open period");
        backoff.withdraw();
        assert_eq!((backoff.pauses(), backoff.open_for(at(2))), (0, Duration::ZERO));
        backoff.failure(at(10), 3);
        assert_eq!(backoff.open_for(at(10)), Duration::from_secs(1));
    }

    #[test]
    fn backpressure_is_never_doubled_and_is_no_failure() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.busy(Duration::from_secs(1), at(100), 1);
        }
        assert_eq!((backoff.pauses(), backoff.open_for(at(100))), (0, Duration::from_secs(1)));
        backoff.failure(at(200), 1);
        assert_eq!(backoff.pauses(), 1, "a failure counts also while the backend is full");
    }

    #[test]
    fn a_long_retry_after_is_believed_as_far_as_nobody_is_served_meanwhile() {
        let (mut backoff, hour) = (Backoff::default(), Duration::from_secs(3600));
        let (mut now, mut pauses) = (at(5), Vec::new());
        for next in 1..8 {
            backoff.busy(hour, now, next);
            // Others that were sent before it.
            backoff.busy(hour, now, next);
            pauses.push(backoff.open_for(now).as_millis());
            now = now + backoff.open_for(now);
        }
        assert_eq!(pauses, [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        backoff.success(6);
        backoff.busy(hour, now, 8);
        assert_eq!(backoff.open_for(now), LONGEST, "what was sent before it proves nothing");
        backoff.success(8);
        now = now + LONGEST;
        backoff.busy(hour, now, 9);
        assert_eq!(backoff.open_for(now), Duration::from_secs(1), "another client was served: it concerns one client");
        backoff.busy(Duration::ZERO, now + Duration::from_secs(1), 9);
        assert_eq!(backoff.open_for(now + Duration::from_secs(1)), Duration::ZERO, "never longer than it asks for");
    }

    #[test]
    fn only_the_success_of_a_later_attempt_closes_it() {
        let mut backoff = Backoff::default();
        backoff.failure(at(0), 7);
        backoff.success(6);
        assert_eq!(backoff.pauses(), 1);
        backoff.success(7);
        assert_eq!((backoff.pauses(), backoff.open_for(at(1))), (0, Duration::ZERO));
    }

    #[test]
    fn a_row_is_broken_by_the_end_of_a_later_attempt_and_not_by_its_first_token() {
        let mut backoff = Backoff::default();
        for (ms, failures_in_a_row) in [(0, 1), (1, 2)] {
            backoff.failure(at(ms), 7);
            assert_eq!(backoff.count(), failures_in_a_row);
        }
        assert!(!backoff.finished(6) && !backoff.success(7));
        assert_eq!(backoff.count(), 3, "neither an old attempt nor a first token");
        backoff.finished(8);
        assert_eq!(backoff.count(), 1);
    }

    #[test]
    fn a_trial_is_one_attempt_and_ends_with_its_success() {
        let mut backoff = Backoff::default();
        backoff.failure(at(0), 4);
        backoff.try_out(9);
        assert_eq!((backoff.open_for(at(0)), backoff.probing()), (Duration::ZERO, false));
        backoff.enter();
        assert!(backoff.probing());
        assert!(!backoff.success(8), "one from before says nothing");
        assert!(backoff.success(9));
        assert!(!backoff.success(9), "told once");
    }

    #[test]
    fn old_attempts_do_not_hold_up_the_probe() {
        let mut backoff = Backoff::default();
        backoff.enter();
        backoff.failure(at(0), 1);
        assert!(!backoff.probing(), "the stream from before the failure is no probe");
        backoff.enter();
        assert!(backoff.probing());
        backoff.leave(0);
        assert!(backoff.probing());
        backoff.leave(1);
        assert!(!backoff.probing());
    }
}
