//! A request and its client's limits: let in, charged for its prompt, corrected at its end, and told in headers.
//!
//! Hot path: nothing for a request without a client key.

use std::time::Duration;

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};

use super::Record;
use forebay_core::clock::Time;
use forebay_core::error::{Failure, Refusal};
use forebay_core::rate_limit::LimitState;
use forebay_core::routing::facts::Kind;
use forebay_fleet::telemetry::metrics::Outcome;

/// The bytes of a request that stand for a token, where nothing but its length is known.
const BYTES_A_TOKEN: u64 = 4;

/// The names under which OpenAI's clients look for a limit, what is left of it and when all of it is: of requests, and of tokens.
const NAMES: [[HeaderName; 3]; 2] = [
    [
        HeaderName::from_static("x-ratelimit-limit-requests"),
        HeaderName::from_static("x-ratelimit-remaining-requests"),
        HeaderName::from_static("x-ratelimit-reset-requests"),
    ],
    [
        HeaderName::from_static("x-ratelimit-limit-tokens"),
        HeaderName::from_static("x-ratelimit-remaining-tokens"),
        HeaderName::from_static("x-ratelimit-reset-tokens"),
    ],
];

impl Record {
    /// Lets the request in, before its body is read: what is refused shall not take up memory.
    ///
    /// # Errors
    /// Its client is over a limit.
    pub(crate) fn enter(&mut self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(client) = &self.client_key else { return Ok(()) };
        let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let tokens = length.unwrap_or_default() / BYTES_A_TOKEN;
        self.allowance = Some(client.enter(tokens, self.shared.clock.now())?);
        Ok(())
    }

    /// Takes the tokens of the prompt from the client's.
    ///
    /// # Errors
    /// It has too few left, or owes some.
    pub(crate) fn charge(&mut self, kind: Kind, tokens: u32) -> Result<(), Refusal> {
        let Some(allowance) = &mut self.allowance else { return Ok(()) };
        // What an engine works at costs something, also where the estimate is nothing: a debt comes first.
        let tokens = if kind == Kind::Light { 0 } else { tokens.max(1) };
        allowance.charge(tokens.into(), self.shared.clock.now())
    }

    /// Corrects what the client was charged, and frees its place.
    pub(super) fn settle(&mut self, outcome: Outcome, now: Time) {
        let Some(mut allowance) = self.allowance.take() else { return };
        let used = self.used(allowance.taken(), outcome);
        allowance.correct(used, now);
        if let Some(usage) = self.usage {
            allowance.count(usage);
        }
    }

    /// The tokens that the request has used, of which `taken` is the estimate of its prompt.
    fn used(&self, taken: u64, outcome: Outcome) -> u64 {
        match (self.usage, outcome) {
            (Some(usage), _) => usage.prompt_tokens.saturating_add(usage.completion_tokens),
            // Without usage events stand for tokens, as in the metrics.
            (None, _) if self.first_token.is_some() => taken.saturating_add(self.token_events),
            (None, Outcome::Success) => taken,
            // An engine may have computed the prompt of a client that left: leaving would else be a way to use it for nothing.
            (None, Outcome::Failed(Failure::ClientLeft)) if self.first_sent.is_some() => taken,
            (None, _) => 0,
        }
    }

    /// Tells the client what is left of its limits.
    pub(super) fn mark_limits(&self, answer: &mut HeaderMap) {
        let Some(client) = &self.client_key else { return };
        for (names, standing) in NAMES.iter().zip(client.standing(self.shared.clock.now())) {
            let Some(LimitState { limit, remaining, reset }) = standing else { continue };
            let [limit_name, remaining_name, reset_name] = names.clone();
            answer.insert(limit_name, HeaderValue::from(limit));
            answer.insert(remaining_name, HeaderValue::from(remaining));
            if let Ok(reset) = HeaderValue::try_from(reset_text(reset)) {
                answer.insert(reset_name, reset);
            }
        }
    }
}

/// A duration as OpenAI writes it: `17ms`, `8.64s`, `6m0s`.
fn reset_text(time: Duration) -> String {
    // Up, as a client that comes when it is told to must find what it was told.
    let millis = time.as_micros().div_ceil(1000);
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, seconds) = (millis / 60_000, (millis % 60_000) as f64 / 1000.0);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_is_written_as_openai_writes_it() {
        for (micros, text) in [
            (0, "0ms"),
            (16_200, "17ms"),
            (1_000_000, "1s"),
            (8_640_000, "8.64s"),
            (72_172_000, "1m12.172s"),
            (360_000_000, "6m0s"),
            (3_723_000_000, "1h2m3s"),
        ] {
            assert_eq!(reset_text(Duration::from_micros(micros)), text);
        }
    }
}
