//! The clients that have keys: who they are, what they may use, and what they have used of it. Made of the configuration, and made
//! anew by a reload, where each name keeps its account: a client gains nothing by it. Knows no HTTP.
//!
//! Hot path: one short lock of the client's own for a request that comes, one when its prompt is known, one at its end. Nothing is
//! allocated, and nothing runs where no keys are configured.

mod allowance;
pub mod view;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwapOption;

use crate::config::model::ClientKey;
use crate::locked;
use crate::pool::Pool;
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::{ClientMetrics, OTHER};
use forebay_core::clock::Time;
use forebay_core::rate_limit::Account;
use forebay_core::routing::wait_room::Priority;

pub use allowance::Allowance;

/// KnownClients with series of their own in the metrics, in the order of the configuration. The others share one.
const NAMED: usize = 100;

/// One client: a key of the configuration.
#[derive(Debug)]
pub struct Client {
    /// Its name in logs.
    pub name: Arc<str>,
    /// SHA-256 of its key.
    pub sha256: [u8; 32],
    /// Its place in the wait room.
    pub priority: Priority,
    models: Option<Vec<String>>,
    account: Arc<Mutex<Account>>,
    metrics: Arc<ClientMetrics>,
}

impl Client {
    /// Returns whether it may use some models only.
    #[must_use]
    pub fn is_restricted(&self) -> bool {
        self.models.is_some()
    }

    /// Returns whether it may use the model of this name in `pool`; without a name, the pool's own. The names of one pool are those of
    /// one model: who may use one, may use all. An adapter's name is that of a model of its own.
    #[must_use]
    pub fn may_use(&self, pool: &Pool, asked: Option<&str>) -> bool {
        let Some(models) = &self.models else { return true };
        let has = |name: &str| models.iter().any(|model| model == name);
        let mut names = std::iter::once(&pool.model).chain(&pool.aliases);
        match asked {
            Some(asked) if names.clone().all(|name| name != asked) => has(asked),
            _ => names.any(|name| has(name)),
        }
    }

    /// Returns whether it may use any model in `pool`, adapters that its backends list among them.
    #[must_use]
    pub fn may_use_some_of(&self, pool: &Pool) -> bool {
        let Some(models) = &self.models else { return true };
        let lists = |model: &String| pool.members().iter().any(|member| member.backend.lists(model));
        self.may_use(pool, None) || models.iter().any(lists)
    }
}

/// The clients that may send requests. Readers take the list as it is; a reload replaces it whole.
#[derive(Debug)]
pub struct KnownClients {
    list: ArcSwapOption<Vec<Arc<Client>>>,
    telemetry: Arc<Telemetry>,
}

impl KnownClients {
    /// No keys: everybody may send requests.
    #[must_use]
    pub fn new(telemetry: Arc<Telemetry>) -> KnownClients {
        KnownClients { list: ArcSwapOption::empty(), telemetry }
    }

    /// Returns the clients; `None` where no keys are configured.
    #[must_use]
    pub fn list(&self) -> Option<Arc<Vec<Arc<Client>>>> {
        self.list.load_full()
    }

    /// Takes over these keys in place of all there were. The account of a name stays, with what was used and what is under way.
    pub fn apply(&self, keys: Option<&[ClientKey]>, now: Time) {
        let old = self.list.load_full().unwrap_or_default();
        let accounts: HashMap<&str, &Arc<Mutex<Account>>> =
            old.iter().map(|client| (&*client.name, &client.account)).collect();
        let labels = |place: usize, key: &ClientKey| if place < NAMED { key.name.clone() } else { OTHER.to_owned() };
        let new = keys.map(|keys| {
            let client = |(place, key): (usize, &ClientKey)| {
                let account = match accounts.get(key.name.as_str()) {
                    Some(account) => {
                        locked(account).retune(key.limits, now);
                        Arc::clone(account)
                    }
                    None => Arc::new(Mutex::new(Account::new(key.limits, now))),
                };
                Arc::new(Client {
                    name: key.name.as_str().into(),
                    sha256: key.sha256,
                    priority: key.priority,
                    models: key.models.clone(),
                    account,
                    metrics: self.telemetry.client(&labels(place, key)),
                })
            };
            Arc::new(keys.iter().enumerate().map(client).collect::<Vec<_>>())
        });
        let known = keys.into_iter().flatten().enumerate().map(|(place, key)| labels(place, key));
        self.telemetry.know_clients(known.collect());
        self.list.store(new);
    }
}

#[cfg(test)]
mod tests;
