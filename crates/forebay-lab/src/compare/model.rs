//! A comparison as data: what every report (terminal, JSON, Markdown, HTML) shows, and nothing that a report must compute.
//! Ratios are of an arm to the baseline. Times are milliseconds unless a name says otherwise. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::figure::Figure;
use super::verdict::{Balance, Bounds, Crossover, Pair, SampleRatio, Scope};
use crate::diagnosis::Diagnosis;
use crate::rows::row_file::Offered;
use crate::rows::slo::Slo;
use crate::rows::summary::Summary;

/// Two or more arms, compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The warnings that head the report, gravest first.
    pub warnings: Vec<Warning>,
    /// The reach of the narrowest verdict.
    pub scope: Scope,
    /// The arm that the others are compared with.
    pub baseline: String,
    /// The arms, the baseline first.
    pub arms: Vec<Arm>,
    /// The time at which the first run began, in milliseconds of Unix time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub began_ms: Option<u64>,
    /// The host that measured, where all rows tell the same one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The limits of goodput, if any were given.
    pub slo: Option<Slo>,
    /// The lateness of the load generator's own timers at the 99th percentile, in the worst run; none if no run tells.
    pub lag_p99_ms: Option<f64>,
    /// One for each load, lightest first; unlimited is the heaviest.
    pub points: Vec<Point>,
    /// The steps towards a verdict, where one is missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub next: Vec<Step>,
    /// The loads at which the better arm changes: a line for each figure and arm with points on both sides.
    pub crossovers: Vec<Crossover>,
}

/// A step towards a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// A sentence.
    Say(String),
    /// A command to be run as it stands.
    Run(String),
}

/// The gravity of a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gravity {
    /// A check failed: the comparison may be wrong.
    FailedCheck,
    /// The verdicts do not reach as far as one may think.
    Scope,
    /// To be known before the figures are repeated elsewhere.
    Note,
}

/// A warning that the reader must know before any figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Warning {
    /// Its gravity.
    pub gravity: Gravity,
    /// A stable word for programs that says what it is, such as `sample_ratio`.
    pub check: &'static str,
    /// One sentence with its figures.
    pub text: String,
}

/// An arm: an arrangement under test.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Arm {
    /// Its name.
    pub name: String,
    /// GPUs that it occupies; none: not known.
    pub gpus: Option<u32>,
    /// The price of an hour, in the currency of `--price`.
    pub price_per_hour: Option<f64>,
    /// Its servers; none: not known.
    pub replicas: Option<u32>,
    /// `--max-num-seqs` of each server; none: not known.
    pub max_num_seqs: Option<u32>,
    /// The model asked for.
    pub model: String,
    /// True if its servers were simulated.
    pub simulated: bool,
}

/// All that was measured at one load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// The way in which requests were offered; none: not known (rows without a head).
    pub offered: Option<Offered>,
    /// The evenness of a rate's gaps, where it was no Poisson process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burstiness: Option<f64>,
    /// Requests under way at once, at most, beside a rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrency: Option<u32>,
    /// The dataset, in words; none: random prompts that share nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// Tokens of each prompt, where the load fixed them.
    pub input_len: Option<u32>,
    /// Tokens of each answer at most, where the load fixed them.
    pub output_len: Option<u32>,
    /// True if the arms ran at once, each request assigned to one of them.
    pub live_split: bool,
    /// One for each arm that ran at this load, in the order of [`Comparison::arms`].
    pub cells: Vec<Cell>,
    /// Each arm beside the baseline.
    pub pairs: Vec<Pair>,
    /// The test of whether the split gave each arm its share; none where arms ran in turn.
    pub sample_ratio: Option<SampleRatio>,
    /// The checks that the arms got the same prompts, and made answers of the same length.
    pub balance: Vec<Balance>,
}

/// An arm at one load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// The arm's name.
    pub arm: String,
    /// All its requests in one; the duration is the sum over epochs.
    pub pooled: Summary,
    /// The owner of its throughput: the arm or the load.
    pub throughput: Throughput,
    /// Requests that were assigned to it and that another arm served.
    pub crossed: u64,
    /// Over its epochs, each counting alike. A figure that cannot be had (no GPUs, no price, no SLO) is absent.
    pub figures: Vec<Measured>,
    /// The epochs, in order.
    pub epochs: Vec<Epoch>,
    /// TTFT of all its requests.
    pub ttft: Vec<QuantilePoint>,
    /// TPOT of all its requests.
    pub tpot: Vec<QuantilePoint>,
    /// The diagnosis of what bound it, as far as its runs agree; none of rows without a head.
    pub diagnosis: Option<Diagnosis>,
}

/// The owner of an arm's throughput.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Throughput {
    /// The arm's: all requests at once, a fixed number under way, or a rate that it did not keep up with.
    OfTheArm,
    /// The load's: the arm kept up with the rate.
    OfTheLoad,
    /// Not known.
    Unclear,
}

/// A figure of an arm over its epochs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The figure.
    pub figure: Figure,
    /// The geometric mean of the epochs' values, in the figure's unit.
    pub value: f64,
    /// The 95 % interval over epochs; none with fewer than three.
    pub interval: Option<Bounds>,
    /// True if it is a P99 of fewer than 500 requests.
    pub few_requests: bool,
}

/// A run of an arm, or its share of a block of a live split: the unit of the statistics.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Epoch {
    /// Its number in the experiment, from 0; of a live split the block's.
    pub epoch: u32,
    /// The block that pairs it with another arm's.
    pub block: Option<u32>,
    /// The start of the servers that it ran on; none: not known.
    pub start: Option<u32>,
    /// Its figures as the benchmark's table has them.
    pub summary: Summary,
    /// Its figures as they are compared.
    pub figures: BTreeMap<Figure, f64>,
    /// Queue and KV use over the run; empty where the servers were not looked at.
    pub timeline: Vec<Moment>,
}

/// A look at all servers of an arm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Moment {
    /// Seconds from the begin of the run.
    pub at_s: f64,
    /// Sequences that run, over all servers.
    pub running: Option<f64>,
    /// Sequences that wait, over all servers.
    pub waiting: Option<f64>,
    /// Share of KV blocks in use, 0 to 1, the mean over servers.
    pub kv_usage: Option<f64>,
}

/// A point of a distribution: this share of the values is at most `ms`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct QuantilePoint {
    /// 0 to 1.
    pub share: f64,
    /// Milliseconds.
    pub ms: f64,
}
