//! The comparison of arms, from the rows of their runs: epochs, figures, intervals, verdicts, checks. The epoch is the unit
//! of the statistics, since requests of one run are not independent. Pure: chance comes from a seed.

pub mod figure;
pub mod model;
mod verdict;

use std::collections::BTreeMap;
use std::time::Duration;

use super::slo::Slo;

/// What a comparison is told beside the rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The arm that the others are compared with; none: the first in the rows.
    pub baseline: Option<String>,
    /// The limits of goodput.
    pub slo: Option<Slo>,
    /// What an arm costs an hour.
    pub prices: BTreeMap<String, f64>,
    /// Shares of a live split, in any unit; an arm that is not named has 1.
    pub shares: BTreeMap<String, f64>,
    /// How long an epoch of a live split is, at least.
    pub block: Duration,
    /// For the bootstrap.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            baseline: None,
            slo: None,
            prices: BTreeMap::new(),
            shares: BTreeMap::new(),
            block: Duration::from_secs(300),
            seed: 0,
        }
    }
}
