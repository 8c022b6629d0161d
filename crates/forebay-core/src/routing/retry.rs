//! What follows a failed attempt before the first token: the failure table as one match, the limits on trying again, and whose
//! answer the client gets when attempts end. After the first token nothing is tried again (`proxy/answer/relay.rs`). Says what to do and does nothing: sending, answering and blaming are the caller's.
//!
//! Hot path: only failed attempts come here, but for the deposit of each request in the budget; no allocation.

use crate::clock::Time;
use crate::error::Failure;

/// Deaths of backends that one request may see: a query that has killed two is not given a third.
pub const MAX_DEATHS: u32 = 2;

/// The part of an answer that the client has been sent when an attempt fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing: status and backend are both open.
    NothingSent,
    /// The head and comments, no token: the status is spent, the backend is open.
    HeadSentEarly,
}

/// The step that follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A fresh connection to the backend that failed, free of budget and blame.
    SameFresh,
    /// Another backend, if the budget and the pool have one; if not, the caller asks [`Attempts::ending`].
    Next,
    /// No more attempts; [`Attempts::ending`] says whose answer ends the request.
    Over,
}

/// The answer that ends a request whose attempts are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The last real answer of a backend, which the caller has kept.
    Theirs,
    /// One of ours, for this failure. Past an early head: an error event and an unclean end.
    Ours(Failure),
}

/// The attempts that one request has been through. Each that failed was on a backend of its own, but for the free one on a fresh
/// connection: `blames`, `nobody_asked` and the proxy's list of those tried rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    limit: u32,
    failed: u32,
    deaths: u32,
    /// The attempt under way is the free one on a fresh connection.
    fresh: bool,
    answered: bool,
    /// Every failure so far said that the backend does not serve the model.
    not_served: bool,
    server_error: Option<u16>,
    last: Option<Failure>,
}

impl Attempts {
    /// Of a request that may make `limit` attempts (at least one), free retries not counted.
    #[must_use]
    pub fn new(limit: u32) -> Attempts {
        Attempts {
            limit: limit.max(1),
            failed: 0,
            deaths: 0,
            fresh: false,
            answered: false,
            not_served: true,
            server_error: None,
            last: None,
        }
    }

    /// Attempts that failed so far, without those that count against no limit: free retries, and backends out of reach.
    #[must_use]
    pub fn failed(&self) -> u32 {
        self.failed
    }

    /// Returns whether no backend has had the request yet. Then there was no attempt, or only ones that counted against no limit.
    #[must_use]
    pub fn nobody_asked(&self) -> bool {
        // Every attempt that a backend had is counted, and no other.
        self.failed == 0
    }

    /// Deaths of backends seen so far; two on one backend (a reused connection and its fresh retry) are one.
    #[must_use]
    pub fn deaths(&self) -> u32 {
        self.deaths
    }

    /// Takes a failure down; call it after [`verdict`], for every failed attempt.
    pub fn note(&mut self, failure: Failure) {
        // Both look at what came before this failure, so they are asked before anything changes.
        self.deaths += u32::from(self.kills(failure));
        if costs_nothing(failure) {
            self.fresh = false;
            // What another backend did says more than that this one was out of reach.
            self.last.get_or_insert(failure);
            return;
        }
        if self.free_retry(failure) {
            self.fresh = true;
        } else {
            self.fresh = false;
            self.failed += 1;
            // One other failure is enough: that backend may serve the model.
            self.not_served &= failure == Failure::NotServed;
        }
        if is_answer(failure) {
            self.answered = true;
        }
        if failure.may_be_the_requests().is_some() {
            self.server_error = failure.may_be_the_requests();
        }
        // That the model is not served here must not hide another failure, which says more.
        if failure != Failure::NotServed || self.not_served {
            self.last = Some(failure);
        }
    }

    /// Returns whether the answer that came with this failure is to be kept. That a backend does not serve the model says nothing
    /// while another that may serve it has failed otherwise. Ask before `note`.
    #[must_use]
    pub fn keeps(&self, failure: Failure) -> bool {
        is_answer(failure) || (failure == Failure::NotServed && self.not_served)
    }

    /// Returns whether this failure is to be held against the backend that caused it, beyond what `Failure::blame` says. It is not
    /// if another backend gave the same status, or the same code in an error event, for this request: then it is the request's
    /// doing. Ask before `note`.
    #[must_use]
    pub fn blames(&self, failure: Failure) -> bool {
        failure.may_be_the_requests().is_none_or(|code| self.server_error != Some(code))
    }

    /// Returns whose answer ends the request, attempts being over: the last real one wins over ours, but for our own fault
    /// (misconfigured) and after two deaths. Past an early head only an error event can still be passed on.
    #[must_use]
    pub fn ending(&self, stage: Stage) -> Ending {
        // Two deaths are an answer of their own, whatever the second was.
        let last = if self.deaths >= MAX_DEATHS { Failure::Died } else { self.last.unwrap_or(Failure::Connect) };
        let theirs = match stage {
            Stage::NothingSent => {
                let answered = self.answered || (self.not_served && self.failed > 0);
                // These are the operator's to mend, so a backend's earlier answer must not hide them.
                let ours = matches!(last, Failure::Misconfigured(_) | Failure::Tls | Failure::Shortage);
                answered && self.deaths < MAX_DEATHS && !ours
            }
            Stage::HeadSentEarly => {
                matches!(last, Failure::ErrorEvent { .. } | Failure::NotServed) && self.deaths < MAX_DEATHS
            }
        };
        if theirs { Ending::Theirs } else { Ending::Ours(last) }
    }

    /// A failure on a reused connection says nothing yet, once; the same on its fresh retry is a death.
    fn free_retry(&self, failure: Failure) -> bool {
        failure == Failure::Reused && !self.fresh
    }

    /// Returns whether the failure is a death: also a refusal right after a reused connection broke, and a fresh one that breaks.
    fn kills(&self, failure: Failure) -> bool {
        failure.is_death() || (self.fresh && matches!(failure, Failure::Connect | Failure::Reused))
    }
}

/// Returns whether the failure is a real answer of a backend, which the caller keeps: it may be what ends the request.
#[must_use]
pub fn is_answer(failure: Failure) -> bool {
    match failure {
        Failure::ServerError(_) | Failure::Busy { .. } | Failure::ErrorEvent { .. } => true,
        Failure::Connect
        | Failure::Shortage
        | Failure::Unreachable
        | Failure::Tls
        | Failure::Reused
        | Failure::Died
        | Failure::Misconfigured(_)
        | Failure::NotServed
        | Failure::FirstToken
        | Failure::Stalled
        | Failure::ListenerGone
        | Failure::Silent
        | Failure::Idle
        | Failure::Truncated
        | Failure::Deadline
        | Failure::Shutdown
        | Failure::ClientLeft => false,
    }
}

/// Returns whether the failed attempt counts against no limit and is not paid from the budget: it cost no backend anything, or
/// its backend does nothing. A backend is tried once, so there is an end to such attempts.
fn costs_nothing(failure: Failure) -> bool {
    matches!(failure, Failure::Unreachable | Failure::Silent)
}

/// Returns whether the attempt that follows this failure is paid from the pool's budget. It is free after a server out of reach or
/// silent. It is free as well where a model is not served: clients' names must not use the budget up.
#[must_use]
pub fn spends_budget(failure: Failure) -> bool {
    !costs_nothing(failure) && failure != Failure::NotServed
}

/// The failure table. `seen` is what came before this failure.
#[must_use]
pub fn verdict(failure: Failure, seen: &Attempts) -> Verdict {
    match failure {
        // Nobody waits, no time is left, or a part of the answer is with the client.
        Failure::ClientLeft | Failure::Shutdown | Failure::Deadline | Failure::Idle | Failure::Truncated => {
            Verdict::Over
        }
        // No other backend could be reached either.
        Failure::Shortage => Verdict::Over,
        Failure::Unreachable | Failure::Silent => Verdict::Next,
        // The client's own mistake: another backend would say the same.
        Failure::ErrorEvent { code, engine_dead: false } if code < 500 => Verdict::Over,
        Failure::Reused if seen.free_retry(failure) => Verdict::SameFresh,
        Failure::Connect
        | Failure::Reused
        | Failure::Died
        | Failure::ServerError(_)
        | Failure::Busy { .. }
        | Failure::Misconfigured(_)
        | Failure::Tls
        | Failure::NotServed
        | Failure::ErrorEvent { .. }
        | Failure::FirstToken
        | Failure::Stalled
        | Failure::ListenerGone => {
            // A request that kills each backend that gets it would take down the fleet one by one: two are enough.
            // `seen` does not have this failure yet, so that it is added here and below.
            let deaths = seen.deaths + u32::from(seen.kills(failure));
            if deaths < MAX_DEATHS && seen.failed + 1 < seen.limit { Verdict::Next } else { Verdict::Over }
        }
    }
}

/// A bucket that pays for retries: a share of requests and a trickle over time, so that a fleet in trouble is not given twice
/// its load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenBucket {
    tokens: f64,
    at: Time,
    burst: f64,
    ratio: f64,
    per_second: f64,
}

impl TokenBucket {
    /// A full bucket: `burst` retries at once, `ratio` more for each request and `per_second` more with time.
    #[must_use]
    pub fn new(burst: f64, ratio: f64, per_second: f64, now: Time) -> TokenBucket {
        let sane = |value: f64| if value.is_finite() { value.max(0.0) } else { 0.0 };
        TokenBucket {
            tokens: sane(burst),
            at: now,
            burst: sane(burst),
            ratio: sane(ratio),
            per_second: sane(per_second),
        }
    }

    /// Returns the bucket with this share of its burst in it, 0 to 1.
    #[must_use]
    pub fn filled(self, share: f64) -> TokenBucket {
        let share = if share.is_nan() { 1.0 } else { share.clamp(0.0, 1.0) };
        TokenBucket { tokens: self.burst * share, ..self }
    }

    /// Pays in for one request.
    pub fn deposit(&mut self) {
        self.tokens = (self.tokens + self.ratio).min(self.burst);
    }

    /// Takes one retry out; false if there is none.
    pub fn withdraw(&mut self, now: Time) -> bool {
        // The refill is reckoned when it is asked for, so that an idle bucket costs nothing.
        self.tokens = (self.tokens + now.secs_since(self.at) * self.per_second).min(self.burst);
        // Threads may bring their moments out of order. The same second must not be paid in twice.
        self.at = self.at.max(now);
        // Fifths do not add up to one exactly.
        let paid = self.tokens >= 1.0 - 1e-9;
        if paid {
            self.tokens = (self.tokens - 1.0).max(0.0);
        }
        paid
    }

    /// Retries that it would pay for at `now`.
    #[must_use]
    pub fn left(&self, now: Time) -> f64 {
        (self.tokens + now.secs_since(self.at) * self.per_second).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::Stage::{HeadSentEarly, NothingSent};
    use super::*;
    use std::time::Duration;

    const BUSY: Failure = Failure::Busy { status: 503, retry_after: None };
    const TOO_MANY: Failure = Failure::Busy { status: 429, retry_after: None };
    const EVENT: Failure = Failure::ErrorEvent { code: 500, engine_dead: false };
    const DEAD: Failure = Failure::ErrorEvent { code: 500, engine_dead: true };

    fn after(failures: &[Failure]) -> Attempts {
        let mut seen = Attempts::new(3);
        for &failure in failures {
            seen.note(failure);
        }
        seen
    }

    #[test]
    fn a_first_failure_moves_on_or_ends_the_attempts() {
        use Failure as F;
        use Verdict::{Next, Over, SameFresh};
        let table = [
            (F::Connect, Next),
            (F::Shortage, Over),
            (F::Unreachable, Next),
            (F::Silent, Next),
            (F::Reused, SameFresh),
            (F::Died, Next),
            (F::ServerError(500), Next),
            (BUSY, Next),
            (TOO_MANY, Next),
            (F::Misconfigured(404), Next),
            (F::Tls, Next),
            (F::ErrorEvent { code: 400, engine_dead: false }, Over),
            (EVENT, Next),
            (DEAD, Next),
            (F::FirstToken, Next),
            (F::Stalled, Next),
            (F::ListenerGone, Next),
            (F::Idle, Over),
            (F::Truncated, Over),
            (F::Deadline, Over),
            (F::Shutdown, Over),
            (F::ClientLeft, Over),
        ];
        for (failure, wanted) in table {
            assert_eq!(verdict(failure, &after(&[])), wanted, "{failure:?}");
        }
    }

    #[test]
    fn the_last_attempt_ends_as_the_table_says() {
        use Failure as F;
        let bad_request = F::ErrorEvent { code: 400, engine_dead: false };
        let table = [
            (F::Connect, false, false),
            (F::ServerError(502), true, false),
            (BUSY, true, false),
            (TOO_MANY, true, false),
            (F::Misconfigured(401), false, false),
            (EVENT, true, true),
            (bad_request, true, true),
            (F::FirstToken, false, false),
        ];
        for (failure, nothing, early) in table {
            let mut seen = after(&[F::Connect, F::Connect]);
            assert_eq!(verdict(failure, &seen), Verdict::Over, "{failure:?}");
            seen.note(failure);
            let ending = |theirs: bool| if theirs { Ending::Theirs } else { Ending::Ours(failure) };
            assert_eq!(seen.ending(NothingSent), ending(nothing), "{failure:?}");
            assert_eq!(seen.ending(HeadSentEarly), ending(early), "{failure:?}");
        }
    }

    #[test]
    fn two_deaths_end_a_request_whatever_answers_came_before() {
        for second in [Failure::Died, DEAD, Failure::Stalled, Failure::ListenerGone] {
            let mut seen = after(&[Failure::Died]);
            assert_eq!(verdict(second, &seen), Verdict::Over);
            seen.note(second);
            assert_eq!(seen.ending(NothingSent), Ending::Ours(Failure::Died), "502");
        }
        let seen = after(&[Failure::ServerError(500), Failure::Died, DEAD]);
        assert_eq!(seen.ending(NothingSent), Ending::Ours(Failure::Died));
        assert_eq!(seen.deaths(), 2);
    }

    #[test]
    fn a_reused_connection_costs_nothing_once_and_is_a_death_if_its_retry_dies_too() {
        let mut seen = after(&[]);
        assert_eq!(verdict(Failure::Reused, &seen), Verdict::SameFresh);
        seen.note(Failure::Reused);
        assert_eq!((seen.failed(), seen.deaths()), (0, 0));
        for retry in [Failure::Connect, Failure::Died, Failure::Reused] {
            assert_eq!(verdict(retry, &seen), Verdict::Next);
            let mut dead = seen;
            dead.note(retry);
            assert_eq!((dead.failed(), dead.deaths()), (1, 1), "{retry:?}");
            assert_eq!(verdict(Failure::Reused, &dead), Verdict::SameFresh, "on the next backend again");
        }
        seen.note(Failure::ServerError(500));
        assert_eq!(seen.deaths(), 0, "its fresh retry was answered");
    }

    #[test]
    fn the_last_real_answer_wins_but_for_our_own_fault() {
        let ending = |failures: &[Failure]| after(failures).ending(NothingSent);
        assert_eq!(ending(&[Failure::ServerError(500), Failure::Connect]), Ending::Theirs);
        assert_eq!(ending(&[BUSY, Failure::FirstToken]), Ending::Theirs);
        assert_eq!(ending(&[Failure::Connect, Failure::Died]), Ending::Ours(Failure::Died));
        assert_eq!(ending(&[BUSY, Failure::Misconfigured(401)]), Ending::Ours(Failure::Misconfigured(401)));
        assert_eq!(ending(&[Failure::Misconfigured(401), BUSY]), Ending::Theirs);
        assert_eq!(ending(&[BUSY, Failure::Tls]), Ending::Ours(Failure::Tls));
        assert_eq!(after(&[Failure::Tls, Failure::Tls]).deaths(), 0);
        assert_eq!(after(&[BUSY, Failure::Connect]).ending(HeadSentEarly), Ending::Ours(Failure::Connect));
        assert_eq!(after(&[BUSY, EVENT]).ending(HeadSentEarly), Ending::Theirs);
    }

    #[test]
    fn a_model_is_not_served_only_if_all_who_may_serve_it_say_so() {
        const GONE: Failure = Failure::NotServed;
        assert_eq!(verdict(GONE, &after(&[])), Verdict::Next);
        let ending = |failures: &[Failure]| after(failures).ending(NothingSent);
        assert_eq!(
            (ending(&[GONE, GONE]), after(&[GONE, GONE]).ending(HeadSentEarly)),
            (Ending::Theirs, Ending::Theirs)
        );
        assert_eq!(ending(&[GONE, Failure::Connect]), Ending::Ours(Failure::Connect));
        assert_eq!(ending(&[Failure::Connect, GONE]), Ending::Ours(Failure::Connect));
        assert_eq!(ending(&[Failure::Reused, GONE]), Ending::Theirs, "a free retry says nothing");
        assert_eq!(ending(&[Failure::Misconfigured(401), GONE]), Ending::Ours(Failure::Misconfigured(401)));
        // The answer that is kept is the one that ends the request.
        assert_eq!((ending(&[BUSY, GONE]), after(&[BUSY]).keeps(GONE)), (Ending::Theirs, false));
        assert!(after(&[GONE]).keeps(BUSY) && after(&[GONE]).keeps(GONE) && !after(&[]).keeps(Failure::Connect));
    }

    #[test]
    fn what_cost_no_backend_anything_spends_no_budget() {
        for free in [Failure::Unreachable, Failure::Silent, Failure::NotServed] {
            assert!(!spends_budget(free), "{free:?}");
        }
        for paid in [Failure::Connect, Failure::Died, Failure::ServerError(500), BUSY, Failure::Misconfigured(401)] {
            assert!(spends_budget(paid), "{paid:?}");
        }
    }

    #[test]
    fn the_same_server_error_from_two_backends_is_the_request_s_doing() {
        let seen = after(&[Failure::ServerError(500)]);
        assert!(after(&[]).blames(Failure::ServerError(500)));
        assert!(!seen.blames(Failure::ServerError(500)) && !seen.blames(EVENT) && seen.blames(DEAD));
        assert!(!after(&[EVENT]).blames(EVENT) && !after(&[EVENT]).blames(Failure::ServerError(500)));
        assert!(seen.blames(Failure::ServerError(502)));
        assert!(seen.blames(Failure::Connect));
    }

    #[test]
    fn attempts_are_limited() {
        let mut seen = Attempts::new(0);
        assert_eq!(verdict(Failure::Connect, &seen), Verdict::Over);
        seen = after(&[Failure::Connect]);
        assert_eq!(verdict(Failure::Connect, &seen), Verdict::Next);
        seen.note(Failure::Connect);
        assert_eq!(verdict(Failure::Connect, &seen), Verdict::Over);
    }

    #[test]
    fn backends_out_of_reach_use_no_attempt_up_and_have_the_last_word_only_alone() {
        let seen = after(&[Failure::Unreachable; 5]);
        assert_eq!((seen.failed(), verdict(Failure::Unreachable, &seen)), (0, Verdict::Next));
        assert_eq!(verdict(Failure::Connect, &seen), Verdict::Next);
        assert_eq!(seen.ending(NothingSent), Ending::Ours(Failure::Unreachable));
        for order in [[Failure::Connect, Failure::Unreachable], [Failure::Unreachable, Failure::Connect]] {
            assert_eq!(after(&order).ending(NothingSent), Ending::Ours(Failure::Connect));
        }
        assert_eq!(after(&[BUSY, Failure::Unreachable]).ending(NothingSent), Ending::Theirs);
        let reused = after(&[Failure::Reused, Failure::Unreachable]);
        assert_eq!(reused.deaths(), 0, "out of reach on the fresh retry is no death");
    }

    #[test]
    fn a_shortage_of_ours_ends_a_request_whatever_was_answered_before() {
        assert_eq!(after(&[BUSY, Failure::Shortage]).ending(NothingSent), Ending::Ours(Failure::Shortage));
    }

    #[test]
    fn a_bucket_of_another_size_may_be_as_full_as_the_old_one() {
        let mut bucket = TokenBucket::new(100.0, 0.2, 0.0, Time::ZERO);
        assert!((0..75).all(|_| bucket.withdraw(Time::ZERO)));
        let half = TokenBucket::new(50.0, 0.2, 0.0, Time::ZERO).filled(bucket.left(Time::ZERO) / 100.0);
        assert!((half.left(Time::ZERO) - 12.5).abs() < 1e-9);
        assert_eq!(bucket.filled(f64::NAN).left(Time::ZERO), 100.0);
        assert_eq!(bucket.filled(7.0).left(Time::ZERO), 100.0);
    }

    #[test]
    fn the_budget_starts_full_and_refills_by_requests_and_by_time() {
        let mut bucket = TokenBucket::new(100.0, 0.2, 10.0, Time::ZERO);
        assert!((0..100).all(|_| bucket.withdraw(Time::ZERO)));
        assert!(!bucket.withdraw(Time::ZERO));
        for _ in 0..5 {
            bucket.deposit();
        }
        assert!(bucket.withdraw(Time::ZERO));
        assert!(!bucket.withdraw(Time::ZERO));
        let later = Time::ZERO + Duration::from_millis(200);
        assert!(bucket.withdraw(later) && bucket.withdraw(later) && !bucket.withdraw(later));
        let much_later = Time::ZERO + Duration::from_secs(3600);
        assert_eq!(bucket.left(much_later), 100.0);
    }
}
