//! What the fleet takes from the configuration beside its pools.

use std::time::Duration;

use super::Controller;
use crate::config::model::{Budget, Config, Replicas};
use crate::health::Rules;
use crate::locked;
use forebay_core::clock::Time;
use forebay_core::routing::retry::TokenBucket;

/// The settings that the fleet takes from the configuration beside its pools.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The age from which a scraped figure counts as absent.
    pub stale_after: Duration,
    /// Rules for taking a backend out, and for how long.
    pub rules: Rules,
    /// The retry budget of each pool.
    pub budget: Budget,
    /// Replicas of this proxy before the same backends.
    pub replicas: Replicas,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Settings {
        Settings {
            // A figure is as old again for each replica that scrapes in turn.
            stale_after: config.replicas.stretch(config.scrape.stale_after),
            rules: Rules {
                failures: config.health.failures,
                base: config.health.ejection.base,
                max: config.health.ejection.max,
            },
            // What each request pays in needs no division: each replica has its part of the requests.
            budget: Budget {
                burst: config.retry.budget.burst / f64::from(config.replicas.count),
                per_second: config.retry.budget.per_second / f64::from(config.replicas.count),
                ..config.retry.budget
            },
            replicas: config.replicas,
        }
    }
}

impl Controller {
    /// Takes over changed settings. A changed retry budget starts full.
    pub fn configure(&self, settings: Settings, now: Time) {
        let mut inner = locked(&self.core().inner);
        let budget_changed = inner.settings.budget != settings.budget;
        inner.settings = settings;
        // A reload of an unchanged budget must not fill it again: retries in a storm are what it is for.
        if budget_changed {
            for gate in inner.gates.values() {
                locked(gate).budget = bucket(settings.budget, now);
            }
        }
        for entry in inner.entries.values() {
            // In place: requests under way hold this load, and what was learned stays.
            entry.backend.load.retune(entry.config.speed, settings.stale_after);
        }
    }
}

/// A full retry budget.
pub(super) fn bucket(budget: Budget, now: Time) -> TokenBucket {
    TokenBucket::new(budget.burst, budget.ratio, budget.per_second, now)
}
