//! What a comparison is told beside the rows, and why it cannot be made.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::rows::slo::Slo;

/// The options of a comparison, which tell what the rows do not.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The arm that the others are compared with; none: the first in the rows.
    pub baseline: Option<String>,
    /// The limits of goodput.
    pub slo: Option<Slo>,
    /// GPUs of an arm, where the rows do not tell.
    pub gpus: BTreeMap<String, u32>,
    /// The price of an hour of each arm.
    pub prices: BTreeMap<String, f64>,
    /// Shares of a live split, in any unit; an arm that is not named has 1.
    pub shares: BTreeMap<String, f64>,
    /// The length of an epoch of a live split, at least.
    pub block: Duration,
    /// Starts of each arm's servers that were planned beforehand, where the rows do not tell.
    pub planned_starts: Option<u32>,
    /// For the bootstrap.
    pub seed: u64,
    /// The command of the comparison, as a shell takes it, for the advice on what to do next.
    pub command: Option<String>,
    /// Sentences about what was left out of the rows before they came here.
    pub notes: Vec<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            baseline: None,
            slo: None,
            gpus: BTreeMap::new(),
            prices: BTreeMap::new(),
            shares: BTreeMap::new(),
            block: Duration::from_secs(300),
            planned_starts: None,
            seed: 0,
            command: None,
            notes: Vec::new(),
        }
    }
}

/// The reason why rows cannot be compared.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CompareError {
    /// No whole run.
    #[error(
        "these files have no whole run with requests; an interrupted run does not count, so run `forebay bench` again"
    )]
    NoRows,
    /// One arm is no comparison.
    #[error("these files have one arm, `{0}`; name the file of another arm as well")]
    OneArm(String),
    /// Rows that do not tell their arm.
    #[error("a run does not name its arm; measure it again with `forebay bench --arm NAME`")]
    NoArm,
    /// An argument for an arm that is not there.
    #[error("{flag}: no arm is called `{name}`; there are {known}")]
    UnknownArm {
        /// The argument.
        flag: &'static str,
        /// The name in the argument.
        name: String,
        /// The arms.
        known: String,
    },
    /// A price or a share that is none.
    #[error("{flag} {arm}={value}: it must be above 0")]
    NotPositive {
        /// The argument.
        flag: &'static str,
        /// The arm.
        arm: String,
        /// The value in the argument.
        value: f64,
    },
    /// An epoch of no length.
    #[error("an epoch of a live split must be longer than 0 s")]
    NoBlock,
    /// Every load was run by one arm only.
    #[error("the arms have no load in common: {0}")]
    NothingInCommon(String),
}
