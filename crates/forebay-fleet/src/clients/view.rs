//! The clients as the live page shows them: limits and what is left of them. Shows no key.

use serde::Serialize;

use super::KnownClients;
use crate::locked;
use forebay_core::clock::Time;
use forebay_core::rate_limit::LimitState;
use forebay_core::routing::wait_room::Priority;

/// KnownClients that are shown at most; those with requests under way first.
const SHOWN: usize = 50;

/// The clients at one moment.
#[derive(Debug, PartialEq, Serialize)]
pub struct ClientsView {
    /// Those that are shown.
    pub shown: Vec<ClientView>,
    /// The number of those that are not.
    pub more: usize,
}

/// One client.
#[derive(Debug, PartialEq, Serialize)]
pub struct ClientView {
    /// Its name.
    pub name: String,
    /// Its place in the wait room.
    pub priority: Priority,
    /// Requests under way.
    pub in_flight: u32,
    /// Requests that it may have under way.
    pub concurrent: Option<u32>,
    /// Its requests a minute.
    pub requests: Option<Left>,
    /// Its tokens a minute.
    pub tokens: Option<Left>,
    /// Requests that were let in, since it is known.
    pub admitted: u64,
    /// Requests that were refused for a limit.
    pub limited: u64,
}

/// A limit by the minute.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Left {
    /// The limit.
    pub limit: u32,
    /// The units that may be used now.
    pub remaining: u32,
    /// Seconds until all of its bucket may.
    pub reset_seconds: f64,
}

impl From<LimitState> for Left {
    fn from(standing: LimitState) -> Left {
        let LimitState { limit, remaining, reset } = standing;
        Left { limit, remaining, reset_seconds: reset.as_secs_f64() }
    }
}

impl KnownClients {
    /// The clients as of `now`; `None` where no keys are configured.
    #[must_use]
    pub fn view(&self, now: Time) -> Option<ClientsView> {
        let list = self.list()?;
        let mut shown: Vec<ClientView> = list
            .iter()
            .map(|client| {
                let account = locked(&client.account);
                let [requests, tokens] = account.standing(now).map(|standing| standing.map(Left::from));
                ClientView {
                    name: client.name.to_string(),
                    priority: client.priority,
                    in_flight: account.in_flight(),
                    concurrent: account.concurrent(),
                    requests,
                    tokens,
                    admitted: account.admitted(),
                    limited: account.limited(),
                }
            })
            .collect();
        // The order of the configuration among equals, so that lines do not jump.
        shown.sort_by_key(|client| std::cmp::Reverse((client.in_flight, client.limited)));
        let more = shown.len().saturating_sub(SHOWN);
        shown.truncate(SHOWN);
        Some(ClientsView { shown, more })
    }
}
