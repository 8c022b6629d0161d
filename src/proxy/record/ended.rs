//! What the end of a request adds to the live figures: those of the arm that it was assigned to, and those of the backend
//! that served it. The same times, under the same conditions, as in the histograms of `/metrics`.
//!
//! Hot path: plain copies, and the figures' own short locks.

use std::time::Duration;

use twox_hash::XxHash3_64;

use super::Record;
use forebay_core::clock::Time;
use forebay_core::routing::split::Session;
use forebay_core::stream::timings::{Timings, tpot_of_sequences};
use forebay_fleet::telemetry::figures::Ended;
use forebay_fleet::telemetry::metrics::{Outcome, TokenSource};

impl Record {
    /// The request belongs to this session; without one it is a session of its own. `kept` is what the log says of it.
    pub(crate) fn belongs_to(&mut self, session: Option<&str>, kept: Option<&Session>) {
        if let Some(session) = session {
            self.session_hash = XxHash3_64::oneshot(session.as_bytes());
        }
        self.session = kept.cloned();
    }

    pub(super) fn timings(&self, end: Time) -> Timings {
        let mut timings = Timings::new(self.arrival);
        timings.body_read = self.body_read;
        timings.first_token = self.first_token;
        timings.end = Some(end);
        timings
    }

    pub(super) fn tokens(&self) -> Option<(TokenSource, u64)> {
        if self.partly {
            return None;
        }
        match self.usage {
            Some(usage) => Some((TokenSource::Usage, usage.completion_tokens)),
            None if self.first_token.is_some() => Some((TokenSource::Events, self.token_events)),
            None => None,
        }
    }

    /// The time of a token after the first.
    pub(super) fn tpot(&self, timings: &Timings) -> Option<Duration> {
        let (_, tokens) = self.tokens()?;
        match self.decode_time {
            None => timings.tpot(tokens),
            Some((decoding, sequences)) => tpot_of_sequences(decoding, tokens, sequences),
        }
    }

    /// The request as it is counted.
    pub(super) fn ended(&self, outcome: Outcome, timings: &Timings) -> Ended {
        let ended = Ended {
            crossed: self.crossed(),
            session: self.session_hash,
            ttft: timings.ttft(),
            prompt_tokens: self.usage.map_or(0, |usage| usage.prompt_tokens),
            output_tokens: self.tokens().map_or(0, |(_, tokens)| tokens),
            predicted: self.predicted.zip(self.sent.zip(self.first_token).map(|(sent, first)| first.since(sent))),
            ..Ended::of(outcome)
        };
        // Half an answer has no E2E, and its TPOT would look good: only whole ones are measured.
        if outcome != Outcome::Success || self.backend.is_none() || self.partly {
            return ended;
        }
        let tpot = self.tpot(timings);
        let slo = &self.settings.slo;
        Ended {
            tpot,
            e2e: timings.e2e(),
            slo_met: ended.ttft.map(|ttft| ttft <= slo.ttft && tpot.is_none_or(|tpot| tpot <= slo.tpot)),
            ..ended
        }
    }

    /// Returns whether another arm than the assigned one has it.
    fn crossed(&self) -> bool {
        let assigned = self.assigned.as_ref().and_then(|(pool, arm)| pool.arm(*arm));
        assigned.zip(self.backend.as_ref()).is_some_and(|(assigned, backend)| assigned.name != backend.arm)
    }

    pub(super) fn tell_figures(&self, ended: &Ended, now: Time) {
        if let Some(arm) = self.assigned.as_ref().and_then(|(pool, arm)| pool.arm(*arm)) {
            arm.figures.record(ended, now);
        }
        if let Some(backend) = &self.backend {
            backend.figures.record(ended, now);
        }
    }
}
