//! What one client has used of its limits, and whether its next request may pass. Knows neither names nor keys; refuses without
//! taking anything.
//!
//! Hot path: two buckets and a count; no allocation.

use std::time::Duration;

use serde::Serialize;

use super::bucket::{Bucket, PerMinute};
use crate::clock::Time;
use crate::error::Over;

/// The time after which a client with as many requests under way as it may have is asked to come again: nobody knows when one ends.
const AGAIN: Duration = Duration::from_secs(1);

/// The limits of a client. One that is `None` does not hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Requests a minute.
    pub requests: Option<PerMinute>,
    /// Tokens of prompts and answers a minute.
    pub tokens: Option<PerMinute>,
    /// Requests at once.
    pub concurrent: Option<u32>,
}

/// A request that is over a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The limit.
    pub over: Over,
    /// The time after which the same request would pass, if nothing else comes before.
    pub after: Duration,
}

/// The state of one limit by the minute, as clients are told it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LimitState {
    /// The limit a minute.
    pub limit: u32,
    /// Units that may be used now, in whole ones.
    pub remaining: u32,
    /// The time until the bucket is full.
    pub reset: Duration,
}

/// One client's use of its limits.
#[derive(Clone, Debug)]
pub struct Account {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    concurrent: Option<u32>,
    in_flight: u32,
    admitted: u64,
    limited: u64,
}

impl Account {
    /// An account that has used nothing.
    #[must_use]
    pub fn new(limits: Limits, now: Time) -> Account {
        let full = |limit| Bucket::full(limit, now);
        Account {
            requests: limits.requests.map(full),
            tokens: limits.tokens.map(full),
            concurrent: limits.concurrent,
            in_flight: 0,
            admitted: 0,
            limited: 0,
        }
    }

    /// Requests under way.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Requests that may be under way at once.
    #[must_use]
    pub fn concurrent(&self) -> Option<u32> {
        self.concurrent
    }

    /// Requests that passed every limit.
    #[must_use]
    pub fn admitted(&self) -> u64 {
        self.admitted
    }

    /// Requests that were over a limit.
    #[must_use]
    pub fn limited(&self) -> u64 {
        self.limited
    }

    /// Lets a request in, which takes one request and a place. `tokens` is what it will probably cost: it takes none of them yet, and
    /// only serves to say when to come again.
    ///
    /// # Errors
    /// The client has no request or no place left.
    pub fn enter(&mut self, tokens: u64, now: Time) -> Result<(), Refused> {
        let over = if self.concurrent.is_some_and(|most| self.in_flight >= most) {
            Some((Over::Concurrent, AGAIN))
        } else {
            self.requests.as_ref().and_then(|bucket| Some((Over::Requests, bucket.wait_for(1.0, now)?)))
        };
        if let Some((over, wait)) = over {
            self.limited += 1;
            let after = [self.requests.as_ref().and_then(|bucket| bucket.wait_for(1.0, now)), self.wait(tokens, now)];
            return Err(Refused { over, after: after.into_iter().flatten().fold(wait, Duration::max) });
        }
        if let Some(bucket) = &mut self.requests {
            bucket.take(1.0, now);
        }
        self.in_flight += 1;
        Ok(())
    }

    /// Takes the tokens of a request that is in. One that costs none is not held to them.
    ///
    /// # Errors
    /// The client has too few left, or owes some. No token is taken, and the request is given back: what is refused costs nothing. Its
    /// place stays taken until it [leaves](Account::leave).
    pub fn charge(&mut self, tokens: u64, now: Time) -> Result<(), Refused> {
        if let Some(after) = self.wait(tokens, now) {
            self.limited += 1;
            if let Some(bucket) = &mut self.requests {
                bucket.give_back(1.0, now);
            }
            return Err(Refused { over: Over::Tokens, after });
        }
        if let Some(bucket) = &mut self.tokens {
            bucket.take(tokens as f64, now);
        }
        self.admitted += 1;
        Ok(())
    }

    /// Returns how long it takes until a request of so many tokens may pass.
    fn wait(&self, tokens: u64, now: Time) -> Option<Duration> {
        self.tokens.as_ref().filter(|_| tokens > 0)?.wait_for(tokens as f64, now)
    }

    /// Puts in place of the tokens that were taken those that were used.
    pub fn correct(&mut self, taken: u64, used: u64, now: Time) {
        let Some(bucket) = &mut self.tokens else { return };
        if used > taken {
            bucket.take((used - taken) as f64, now);
        } else {
            bucket.give_back((taken - used) as f64, now);
        }
    }

    /// A request that was let in has ended.
    pub fn leave(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The state of the limits by the minute: of requests, and of tokens.
    #[must_use]
    pub fn standing(&self, now: Time) -> [Option<LimitState>; 2] {
        [&self.requests, &self.tokens].map(|bucket| {
            let bucket = bucket.as_ref()?;
            // A float too large or below zero becomes the nearest whole number.
            let remaining = bucket.level(now).max(0.0) as u32;
            Some(LimitState { limit: bucket.limit().limit, remaining, reset: bucket.until_full(now) })
        })
    }

    /// Takes other limits. What was used stays used; a limit that is new begins full.
    pub fn retune(&mut self, limits: Limits, now: Time) {
        self.concurrent = limits.concurrent;
        for (bucket, limit) in [(&mut self.requests, limits.requests), (&mut self.tokens, limits.tokens)] {
            match (bucket.as_mut(), limit) {
                (Some(bucket), Some(limit)) => bucket.retune(limit, now),
                (_, limit) => *bucket = limit.map(|limit| Bucket::full(limit, now)),
            }
        }
    }
}

#[cfg(test)]
mod tests;
