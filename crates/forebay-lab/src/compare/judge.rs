//! From a figure's values in each run to a ratio, its interval and a verdict. Pure.
//!
//! The rule, one for text, JSON, crossovers and plots: a winner is named where the 95 % interval of the ratio excludes 1, the
//! difference is more than 2 %, and so it stays after Holm's adjustment for all verdicts of a report. The interval holds every
//! ratio that neither of two tests rejects: a t test on logarithms, and from five units a side on an exact rank test. The t
//! test alone sees little once one run in four is slow; the rank test alone cannot be sure of anything with few units. Since the
//! better of two counts, each must be surer: both p are multiplied by 1.5. `tests/verdicts` shows what that gives.

use super::design::{Alone, Design, Linked, Units};
use super::figure::Figure;
use super::verdict::{Bounds, Method, Scope, Unshown, Verdict};
use crate::stats::estimate::{Estimate, mean, paired, welch};
use crate::stats::rank::Ranks;
use crate::stats::trend::{self, Timed};

/// The chance with which an interval holds the truth.
pub const LEVEL: f64 = 0.95;
/// The chance with which a detectable difference is shown.
const POWER: f64 = 0.8;
/// A difference up to this is too small to name a winner by.
pub const LEAST: f64 = 1.02;
/// Units of each group from which a trend is fitted and a rank test takes part. With fewer, Welch's is on the safe side of any
/// linear trend in alternating runs, and a rank test could not reject.
const RANKED: usize = 5;
/// Pairs from which a rank test takes part: five cannot reject at 5 %.
const RANKED_PAIRS: usize = 6;
/// The factor of p where the smaller of two counts: it keeps 5 % for normal, heavy-tailed and contaminated values alike.
const BOTH: f64 = 1.5;
/// And that of pairs too few for ranks: neighbours in A-B-B-A that resemble each other by half would make 5 % 6.6.
const FEW_PAIRS: f64 = 1.25;

/// The logarithm of arm ÷ baseline, with its error.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// The mean of the logarithms of the units, baseline and arm.
    pub means: (f64, f64),
    /// The difference by t.
    pub log: Estimate,
    /// The difference by ranks, where there are enough units.
    ranks: Option<Ranks>,
    /// The factor that both p are multiplied by.
    factor: f64,
    /// The way in which its error was had.
    pub method: Method,
    /// The reach of the judgement.
    pub scope: Scope,
}

/// Judges a figure by its values in the runs that the design was made from; none where it has no units, or a value is not above 0.
#[must_use]
pub fn judge(design: &Design, baseline: &[f64], arm: &[f64]) -> Option<Judged> {
    let logs = |values: &[f64]| -> Option<Vec<f64>> {
        values.iter().map(|value| (*value > 0.0 && value.is_finite()).then(|| value.ln())).collect()
    };
    let logs = [logs(baseline)?, logs(arm)?];
    match &design.units {
        Units::Pairs(units) => of_pairs(units, &logs, design.scope),
        Units::Groups(groups) => of_groups(groups, &logs, design.scope),
        Units::Nothing => None,
    }
}

fn average(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

fn of_pairs(units: &[Linked], logs: &[Vec<f64>; 2], scope: Scope) -> Option<Judged> {
    let of = |unit: &Linked, side: usize| {
        average(unit.blocks.iter().map(|block| average(block[side].iter().map(|place| logs[side][*place]))))
    };
    let pairs: Vec<(f64, f64)> = units.iter().map(|unit| (of(unit, 0), of(unit, 1))).collect();
    let differences: Vec<f64> = pairs.iter().map(|(a, b)| b - a).collect();
    let means = (average(pairs.iter().map(|pair| pair.0)), average(pairs.iter().map(|pair| pair.1)));
    let count = units.len() as u32;
    if let Some(gap) = one_order(units) {
        let drift: Vec<Timed> = units.iter().zip(&pairs).map(|(unit, (a, b))| (unit.at, (a + b) / 2.0)).collect();
        let log = trend::without_slope(&differences, gap, &drift)?;
        let method = Method::Paired { units: count, df: log.df, trend: true };
        return Some(Judged { means, log, ranks: None, factor: FEW_PAIRS, method, scope });
    }
    let log = paired(&pairs)?;
    let ranks = (pairs.len() >= RANKED_PAIRS).then(|| Ranks::of_differences(&differences));
    let factor = if ranks.is_some() { BOTH } else { FEW_PAIRS };
    let method = Method::Paired { units: count, df: log.df, trend: false };
    Some(Judged { means, log, ranks, factor, method, scope })
}

/// By how much the arm came later than the baseline, where it nearly always did, or was nearly always first: a linear trend alone
/// would then lie further from 0 than its own error.
fn one_order(units: &[Linked]) -> Option<f64> {
    let gaps: Option<Vec<f64>> = units.iter().map(|unit| unit.gap).collect();
    let found = mean(&gaps?)?;
    (found.mean != 0.0 && found.mean.abs() > found.se).then_some(found.mean)
}

fn of_groups(groups: &[Vec<Alone>; 2], logs: &[Vec<f64>; 2], scope: Scope) -> Option<Judged> {
    let timed = |side: usize| -> Vec<Timed> {
        let value = |unit: &Alone| (unit.at, average(unit.runs.iter().map(|place| logs[side][*place])));
        groups[side].iter().map(value).collect()
    };
    let (a, b) = (timed(0), timed(1));
    let plain = |values: &[Timed]| values.iter().map(|one| one.1).collect::<Vec<f64>>();
    let means = (average(a.iter().map(|one| one.1)), average(b.iter().map(|one| one.1)));
    let units = (a.len() as u32, b.len() as u32);
    let (least, most) = (a.len().min(b.len()), a.len().max(b.len()));
    let fitted = (least >= RANKED).then(|| trend::difference(&a, &b)).flatten();
    let Some(log) = fitted else {
        let log = welch(&plain(&a), &plain(&b))?;
        let method = Method::Welch { baseline: units.0, arm: units.1, df: log.df, trend: false };
        return Some(Judged { means, log, ranks: None, factor: 1.0, method, scope });
    };
    let method = Method::Welch { baseline: units.0, arm: units.1, df: log.df, trend: true };
    // Groups of other sizes may spread by other amounts, which a rank test takes for a shift.
    let slope = trend::median_slope(&[&a, &b]).filter(|_| 2 * most <= 3 * least);
    let ranks = slope.map(|slope| {
        let level = |values: &[Timed]| values.iter().map(|one| one.1 - slope * one.0).collect::<Vec<f64>>();
        Ranks::of_groups(&level(&a), &level(&b))
    });
    let factor = if ranks.is_some() { BOTH } else { 1.0 };
    Some(Judged { means, log, ranks, factor, method, scope })
}

impl Judged {
    /// Returns the judgement that an estimate of the difference gives by itself.
    pub(super) fn of_estimate(means: (f64, f64), log: Estimate, method: Method, scope: Scope) -> Judged {
        Judged { means, log, ranks: None, factor: 1.0, method, scope }
    }

    /// Arm ÷ baseline: the median of the ratios of units where ranks take part, else of their geometric means; within the interval.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        let Bounds { low, high } = self.interval();
        self.ranks.as_ref().map_or(self.log.mean, Ranks::estimate).exp().clamp(low, high)
    }

    /// Its 95 % interval: what neither test rejects.
    #[must_use]
    pub fn interval(&self) -> Bounds {
        let level = 1.0 - (1.0 - LEVEL) / self.factor;
        let (low, high) = self.log.interval(level);
        let ranked = self.ranks.as_ref().and_then(|ranks| ranks.interval(level));
        let (low, high) = match ranked {
            // Means far from all ranks: odd values moved them.
            Some((from, to)) if from > high || to < low => (from, to),
            Some((from, to)) => (low.max(from), high.min(to)),
            None => (low, high),
        };
        Bounds { low: low.exp(), high: high.exp() }
    }

    /// The chance of a ratio at least as far from 1 without a difference.
    #[must_use]
    pub fn p(&self) -> f64 {
        let (t, rank) = self.two_p();
        (self.factor * t.min(rank.unwrap_or(1.0))).min(1.0)
    }

    /// Returns the p for one of several verdicts: far out the two tests agree less, so that only twice the smaller p is surely one.
    #[must_use]
    pub fn p_of_many(&self) -> f64 {
        let (t, rank) = self.two_p();
        rank.map_or_else(|| self.p(), |rank| (2.0 * t.min(rank)).min(1.0))
    }

    /// The p of the t test by itself, and that of the rank test.
    #[must_use]
    pub fn two_p(&self) -> (f64, Option<f64>) {
        (self.log.p(), self.ranks.as_ref().map(Ranks::p))
    }

    /// The smallest ratio above 1 that would have been shown in 4 of 5 experiments, as one of so many tests of a family.
    #[must_use]
    pub fn detectable(&self, tests: usize) -> f64 {
        let factor = if tests > 1 && self.ranks.is_some() { 2.0 } else { self.factor };
        let level = 1.0 - (1.0 - LEVEL) / factor / tests.max(1) as f64;
        self.log.detectable(level, POWER).exp().max(LEAST)
    }

    /// Tests whether a difference is shown, where p after the adjustment is this.
    ///
    /// # Errors
    /// The reason why it is not shown.
    pub fn shows(&self, p_adjusted: f64) -> Result<(), Unshown> {
        let (ratio, interval) = (self.ratio(), self.interval());
        if interval.low <= 1.0 && interval.high >= 1.0 {
            Err(Unshown::IncludesOne)
        } else if ratio.max(1.0 / ratio) <= LEAST {
            Err(Unshown::TooSmall)
        } else if (ratio > 1.0) != (self.means.1 > self.means.0) {
            Err(Unshown::MeansDisagree)
        } else if p_adjusted >= 1.0 - LEVEL {
            Err(Unshown::ManyVerdicts)
        } else {
            Ok(())
        }
    }

    /// The verdict by this figure, as one of so many of a report. `p_adjusted` is its p after the adjustment for all of them.
    #[must_use]
    pub fn verdict(&self, figure: Figure, names: (&str, &str), p_adjusted: f64, verdicts: usize) -> Verdict {
        let (ratio, interval, scope) = (self.ratio(), self.interval(), self.scope);
        if let Err(because) = self.shows(p_adjusted) {
            let detectable = self.detectable(verdicts);
            return Verdict::NoDifference { figure, ratio, interval, detectable, because, scope };
        }
        let (baseline, arm) = (names.0.to_owned(), names.1.to_owned());
        if (ratio > 1.0) == figure.more_is_better() {
            Verdict::Winner { arm, over: baseline, figure, ratio, interval, scope }
        } else {
            let interval = Bounds { low: 1.0 / interval.high, high: 1.0 / interval.low };
            Verdict::Winner { arm: baseline, over: arm, figure, ratio: 1.0 / ratio, interval, scope }
        }
    }
}
