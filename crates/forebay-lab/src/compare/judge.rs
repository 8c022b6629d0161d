//! From the epochs' values of a figure to a ratio, its interval and a verdict. Pure.
//!
//! The rules: with three epochs a side, a t-interval on logarithms: of the differences of blocks where epochs alternate in
//! blocks, else Welch's. Epochs that share a start of the servers are clustered by it where there are three starts a side; else
//! the verdict holds for these starts. A winner needs an interval that excludes 1 and a difference of more than 2 %.

use std::collections::{BTreeMap, BTreeSet};

use super::figure::Figure;
use super::verdict::{Bounds, Method, Scope, Unshown, Verdict};
use crate::stats::estimate::{Estimate, group_means, mean, paired, welch};

/// Epochs a side, and starts a side, from which a spread is known.
pub const ENOUGH: usize = 3;
/// The chance with which an interval holds the truth.
pub const LEVEL: f64 = 0.95;
/// The chance with which a detectable difference is shown.
const POWER: f64 = 0.8;
/// A difference up to this is too small to name a winner by.
pub const LEAST: f64 = 1.02;

/// A figure's value in one epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EpochValue {
    /// The block that pairs it.
    pub block: Option<u32>,
    /// Which start of the servers it ran on; none: not known.
    pub start: Option<u32>,
    /// The value, above 0.
    pub value: f64,
}

/// The logarithm of arm ÷ baseline, with its error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// The logarithm of the ratio.
    pub log: Estimate,
    /// How its error was had.
    pub method: Method,
    /// How far it reaches.
    pub scope: Scope,
}

/// Judges a figure by its epochs; none with fewer than three a side, or a value that is not above 0.
#[must_use]
pub fn judge(baseline: &[EpochValue], arm: &[EpochValue], live: bool) -> Option<Judged> {
    let sound = |units: &[EpochValue]| units.len() >= ENOUGH && units.iter().all(|unit| unit.value > 0.0);
    if !sound(baseline) || !sound(arm) {
        return None;
    }
    if !shared(baseline) && !shared(arm) {
        return by_epoch(baseline, arm, Scope::AnyStart);
    }
    by_start(baseline, arm, live).or_else(|| by_epoch(baseline, arm, Scope::TheseStarts))
}

/// Whether epochs shared a start of the servers, or may have.
fn shared(units: &[EpochValue]) -> bool {
    let known: BTreeSet<u32> = units.iter().filter_map(|unit| unit.start).collect();
    known.len() < units.len()
}

fn by_epoch(baseline: &[EpochValue], arm: &[EpochValue], scope: Scope) -> Option<Judged> {
    if let Some(pairs) = blocks(baseline, arm).filter(|pairs| pairs.len() >= ENOUGH) {
        let pairs: Vec<(f64, f64)> = pairs.into_iter().map(|(_, pair)| pair).collect();
        let log = paired(&pairs)?;
        return Some(Judged { log, method: Method::Paired { blocks: pairs.len() as u32, df: log.df }, scope });
    }
    let logs = |units: &[EpochValue]| -> Vec<f64> { units.iter().map(|unit| unit.value.ln()).collect() };
    let log = welch(&logs(baseline), &logs(arm))?;
    Some(Judged { log, method: Method::Welch { df: log.df }, scope })
}

/// Block by block the mean logarithms of both; none if an epoch has no block, or no block has both.
fn blocks(baseline: &[EpochValue], arm: &[EpochValue]) -> Option<Vec<(u32, (f64, f64))>> {
    let means = |units: &[EpochValue]| -> Option<BTreeMap<u32, f64>> {
        let logs: Option<Vec<(u32, f64)>> = units.iter().map(|unit| Some((unit.block?, unit.value.ln()))).collect();
        let logs = logs?;
        let names: BTreeSet<u32> = logs.iter().map(|(block, _)| *block).collect();
        Some(names.into_iter().zip(group_means(&logs)).collect())
    };
    let (baseline, arm) = (means(baseline)?, means(arm)?);
    Some(baseline.iter().filter_map(|(block, a)| Some((*block, (*a, *arm.get(block)?)))).collect())
}

/// Starts as the unit; none with fewer than three known ones a side. In a live split both arms run on the same start.
fn by_start(baseline: &[EpochValue], arm: &[EpochValue], live: bool) -> Option<Judged> {
    let logs = |units: &[EpochValue]| -> Option<Vec<(u32, f64)>> {
        units.iter().map(|unit| Some((unit.start?, unit.value.ln()))).collect()
    };
    let (baseline_logs, arm_logs) = (logs(baseline)?, logs(arm)?);
    let (a, b) = (group_means(&baseline_logs), group_means(&arm_logs));
    if a.len() < ENOUGH || b.len() < ENOUGH {
        return None;
    }
    let log = if live && a.len() == b.len() {
        let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| b - a).collect();
        mean(&differences)?
    } else {
        welch(&a, &b)?
    };
    let method = Method::Clustered { baseline_starts: a.len() as u32, arm_starts: b.len() as u32, df: log.df };
    Some(Judged { log, method, scope: Scope::AnyStart })
}

impl Judged {
    /// Arm ÷ baseline.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.log.mean.exp()
    }

    /// Its 95 % interval.
    #[must_use]
    pub fn interval(&self) -> Bounds {
        let (low, high) = self.log.interval(LEVEL);
        Bounds { low: low.exp(), high: high.exp() }
    }

    /// The smallest ratio above 1 that would have been shown in 4 of 5 experiments.
    #[must_use]
    pub fn detectable(&self) -> f64 {
        self.log.detectable(LEVEL, POWER).exp().max(LEAST)
    }

    /// The verdict by this figure. `p_adjusted` is its p after the adjustment for all verdicts of a report, and its own p where
    /// there is one.
    #[must_use]
    pub fn verdict(&self, figure: Figure, names: (&str, &str), p_adjusted: f64) -> Verdict {
        let (ratio, interval) = (self.ratio(), self.interval());
        let because = match shows(ratio, interval) {
            Err(because) => Some(because),
            Ok(()) if p_adjusted >= 1.0 - LEVEL => Some(Unshown::ManyVerdicts),
            Ok(()) => None,
        };
        if let Some(because) = because {
            let (detectable, scope) = (self.detectable(), self.scope);
            return Verdict::NoDifference { figure, ratio, interval, detectable, because, scope };
        }
        let (baseline, arm) = (names.0.to_owned(), names.1.to_owned());
        if (ratio > 1.0) == figure.more_is_better() {
            Verdict::Winner { arm, over: baseline, figure, ratio, interval, scope: self.scope }
        } else {
            let interval = Bounds { low: 1.0 / interval.high, high: 1.0 / interval.low };
            Verdict::Winner { arm: baseline, over: arm, figure, ratio: 1.0 / ratio, interval, scope: self.scope }
        }
    }
}

/// Whether a ratio with this interval shows a difference.
///
/// # Errors
/// Why it does not.
pub fn shows(ratio: f64, interval: Bounds) -> Result<(), Unshown> {
    if interval.low <= 1.0 && interval.high >= 1.0 {
        Err(Unshown::IncludesOne)
    } else if ratio.max(1.0 / ratio) <= LEAST {
        Err(Unshown::TooSmall)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(values: &[f64], block: bool, start: fn(u32) -> Option<u32>) -> Vec<EpochValue> {
        (0..)
            .zip(values)
            .map(|(n, value)| EpochValue { block: block.then_some(n), start: start(n), value: *value })
            .collect()
    }

    const A: [f64; 4] = [100.0, 104.0, 98.0, 102.0];
    const B: [f64; 4] = [110.0, 115.0, 108.0, 111.0];

    #[test]
    fn fewer_than_three_epochs_are_not_judged() {
        assert!(judge(&units(&A[..2], false, Some), &units(&B, false, Some), false).is_none());
        assert!(judge(&units(&[1.0, 0.0, 1.0], false, Some), &units(&B, false, Some), false).is_none());
    }

    #[test]
    fn blocks_are_paired_and_other_epochs_are_welch_s() {
        let judged = |block| judge(&units(&A, block, Some), &units(&B, block, Some), false).unwrap();
        assert!(matches!(judged(true).method, Method::Paired { blocks: 4, .. }));
        assert!(matches!(judged(false).method, Method::Welch { .. }));
        assert!((judged(true).ratio() - judged(false).ratio()).abs() < 1e-12);
        assert_eq!(judged(true).scope, Scope::AnyStart);
        let lone = units(&B[..3], true, Some);
        let paired = judge(&units(&A, true, Some), &lone, false).unwrap();
        assert!(matches!(paired.method, Method::Paired { blocks: 3, .. }), "a block with one arm alone is none");
    }

    #[test]
    fn shared_starts_are_clustered_or_said() {
        let judged = |start: fn(u32) -> Option<u32>| {
            let (a, b) = ([A, A].concat(), [B, B].concat());
            judge(&units(&a, false, start), &units(&b, false, start), false).unwrap()
        };
        assert!(matches!(judged(|n| Some(n / 2)).method, Method::Clustered { baseline_starts: 4, arm_starts: 4, .. }));
        assert_eq!(
            (judged(|n| Some(n / 2)).scope, judged(|n| Some(n / 4)).scope),
            (Scope::AnyStart, Scope::TheseStarts)
        );
        assert_eq!(judged(|_| None).scope, Scope::TheseStarts, "a start that is not known may be shared");
    }

    #[test]
    fn a_winner_needs_an_interval_beside_one_and_two_percent() {
        let verdict = |b: &[f64], figure, p| {
            judge(&units(&A, false, Some), &units(b, false, Some), false).unwrap().verdict(figure, ("a", "b"), p)
        };
        let Verdict::Winner { arm, ratio, interval, .. } = verdict(&B, Figure::OutputTokensPerGpu, 0.01) else {
            panic!("no winner")
        };
        assert!(arm == "b" && ratio > 1.09 && interval.low > 1.02);
        let Verdict::Winner { arm, over, ratio, interval, .. } = verdict(&B, Figure::TtftP95, 0.01) else {
            panic!("no winner")
        };
        assert!(
            (arm.as_str(), over.as_str()) == ("a", "b")
                && ratio < 0.92
                && interval.low < ratio
                && ratio < interval.high
        );
        let unshown = |verdict| match verdict {
            Verdict::NoDifference { because, detectable, .. } => (because, detectable),
            other => panic!("{other:?}"),
        };
        let (because, detectable) = unshown(verdict(&A, Figure::TtftP95, 1.0));
        assert!(because == Unshown::IncludesOne && detectable > 1.05, "{detectable}");
        assert_eq!(unshown(verdict(&B, Figure::TtftP95, 0.06)).0, Unshown::ManyVerdicts);
        let close: Vec<f64> = A.iter().map(|value| value * 1.015).collect();
        let blocked = judge(&units(&A, true, Some), &units(&close, true, Some), false).unwrap();
        assert_eq!(unshown(blocked.verdict(Figure::TtftP95, ("a", "b"), 0.0)).0, Unshown::TooSmall);
    }
}
