//! The allowance of one request of a client: a request and a place of its account, then its tokens. Given back by `Drop`, through a
//! pointer, so that no path can keep a place.

use std::sync::Arc;

use super::Client;
use crate::locked;
use forebay_core::clock::Time;
use forebay_core::error::Refusal;
use forebay_core::rate_limit::{LimitState, Refused};
use forebay_core::stream::Usage;

/// One request of a client that was let in.
#[derive(Debug)]
#[must_use = "dropping it frees the place"]
pub struct Allowance {
    client: Arc<Client>,
    /// Tokens that were taken for its prompt.
    taken: u64,
}

impl Client {
    /// Lets a request of this client in. `tokens` is what it will probably cost, which only says when to come again.
    ///
    /// # Errors
    /// `Refusal::RateLimited` where the client is over a limit.
    pub fn enter(self: &Arc<Self>, tokens: u64, now: Time) -> Result<Allowance, Refusal> {
        let entered = locked(&self.account).enter(tokens, now);
        entered.map_err(|refused| self.refusal(refused))?;
        self.metrics.in_flight.increment(1.0);
        Ok(Allowance { client: Arc::clone(self), taken: 0 })
    }

    /// The state of its limits by the minute: of requests, and of tokens.
    #[must_use]
    pub fn standing(&self, now: Time) -> [Option<LimitState>; 2] {
        locked(&self.account).standing(now)
    }

    fn refusal(&self, refused: Refused) -> Refusal {
        self.metrics.limited(refused.over);
        Refusal::RateLimited { client: self.name.to_string(), over: refused.over, after: refused.after }
    }
}

impl Allowance {
    /// Takes the tokens of its prompt, and counts it as admitted.
    ///
    /// # Errors
    /// `Refusal::RateLimited` where the client has too few tokens left. Then it costs the client nothing.
    pub fn charge(&mut self, tokens: u64, now: Time) -> Result<(), Refusal> {
        let charged = locked(&self.client.account).charge(tokens, now);
        charged.map_err(|refused| self.client.refusal(refused))?;
        self.taken = tokens;
        self.client.metrics.requests.increment(1);
        Ok(())
    }

    /// Returns the tokens that were taken for its prompt.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Puts in place of the tokens that were taken those that were used.
    pub fn correct(&mut self, used: u64, now: Time) {
        locked(&self.client.account).correct(self.taken, used, now);
        self.taken = used;
    }

    /// Counts the tokens of its answer.
    pub fn count(&self, usage: Usage) {
        self.client.metrics.tokens(usage.prompt_tokens, usage.completion_tokens);
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        locked(&self.client.account).leave();
        self.client.metrics.in_flight.decrement(1.0);
    }
}
