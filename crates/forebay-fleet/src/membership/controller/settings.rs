//! What the fleet takes from the configuration beside its pools.

use std::time::Duration;

use super::Controller;
use crate::config::model::{Budget, Config, Discover};
use crate::health::Rules;
use crate::locked;
use crate::membership::replicas::ReplicaCount;
use forebay_core::clock::Time;
use forebay_core::routing::retry::TokenBucket;

/// The settings that the fleet takes from the configuration beside its pools. They are those of all replicas together; each takes its
/// part.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The age from which a scraped figure counts as absent.
    pub stale_after: Duration,
    /// Rules for taking a backend out, and for how long.
    pub rules: Rules,
    /// The retry budget of each pool.
    pub budget: Budget,
    /// Replicas of this proxy before the same backends, as far as the configuration knows.
    pub replicas: ReplicaCount,
    /// The source that counts them, if one does.
    pub counted_by: Option<Discover>,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Settings {
        Settings {
            stale_after: config.scrape.stale_after,
            rules: Rules {
                failures: config.health.failures,
                base: config.health.ejection.base,
                max: config.health.ejection.max,
            },
            budget: config.retry.budget,
            replicas: ReplicaCount::of(config.replicas.count),
            counted_by: config.replicas.kubernetes.clone().map(Discover::of_replicas),
        }
    }
}

impl Controller {
    /// Takes over changed settings. A changed retry budget starts full.
    pub fn configure(&self, settings: Settings, now: Time) {
        let mut inner = locked(&self.core().inner);
        let budget_changed = inner.settings.budget != settings.budget;
        let before = inner.replication.count;
        inner.replication.configure(settings.replicas, settings.counted_by.as_ref());
        inner.settings = settings;
        inner.divide(before, now);
        // A reload of an unchanged budget must not fill it again: retries in a storm are what it is for.
        if budget_changed {
            let budget = inner.replication.count.part_of_budget(inner.settings.budget);
            for gate in inner.gates.values() {
                locked(gate).budget = bucket(budget, now);
            }
        }
    }
}

/// A full retry budget.
pub(super) fn bucket(budget: Budget, now: Time) -> TokenBucket {
    TokenBucket::new(budget.burst, budget.ratio, budget.per_second, now)
}
