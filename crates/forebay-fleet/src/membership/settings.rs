//! What the fleet takes from the configuration beside its pools.

use std::time::Duration;

use crate::config::model::{Budget, Config};
use crate::health::Rules;

/// The settings that the fleet takes from the configuration beside its pools.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The age from which a scraped figure counts as absent.
    pub stale_after: Duration,
    /// Rules for taking a backend out, and for how long.
    pub rules: Rules,
    /// The retry budget of each pool.
    pub budget: Budget,
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
        }
    }
}
