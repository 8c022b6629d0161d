//! From a figure's values in each run to a ratio, its interval and a verdict. Pure.
//!
//! The rule, one for text, JSON, crossovers and plots: a winner is named where the 95 % interval of the ratio excludes 1, the
//! difference is more than 2 %, and so it stays after Holm's adjustment for all verdicts of a report. The interval holds every
//! ratio that neither of two tests rejects: a t test on logarithms, and from six units a side on an exact rank test. The t
//! test alone sees little once one run in four is slow; the rank test alone cannot be sure of anything with few units. Since the
//! better of two counts, each must be surer: both p are multiplied by 1.5. The error of a t test is wide enough for runs that
//! resemble the ones before them (`stats/serial.rs`). `tests/verdicts` shows what that gives.

use super::design::{Alone, Design, Linked, Units};
use super::figure::Figure;
use super::verdict::{Bounds, Method, Scope, Unshown, Verdict};
use crate::stats::estimate::{Estimate, mean, paired, welch};
use crate::stats::rank::Ranks;
use crate::stats::serial::{self, Harm};
use crate::stats::trend::{self, Timed};

/// The chance with which an interval holds the truth.
pub const LEVEL: f64 = 0.95;
/// The chance with which a detectable difference is shown.
const POWER: f64 = 0.8;
/// A difference up to this is too small to name a winner by.
pub const LEAST: f64 = 1.02;
/// Units of each group from which a trend is fitted. With fewer, Welch's is on the safe side of any linear trend in alternating runs.
const FITTED: usize = 5;
/// Units of each group from which a rank test takes part. It can reject with five, and then does so too often where one arm spreads
/// three times as much as the other.
const RANKED: usize = 6;
/// Pairs from which a rank test takes part. Five cannot reject at 5 %, and six do where all have one sign and not otherwise.
const RANKED_PAIRS: usize = 7;
/// The factor of p where the smaller of two counts: it keeps 5 % for normal, heavy-tailed and contaminated values alike.
const BOTH: f64 = 1.5;
/// The factor by which neighbours may make an interval too short and are let be: the error of a dozen units is itself not known to a
/// twentieth, and starts of several blocks have no more.
const SLIGHT: f64 = 1.05;
/// The harm of neighbours up to which ranks of pairs take part: pairs in A-B-B-A have up to 1.24.
const COVERED: f64 = 1.25;

/// The degrees of freedom of an error that is known.
const KNOWN: f64 = 1e6;

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
    let found = *design.harm.get_or_init(|| harm(design));
    let harm = if found.wider > SLIGHT { found } else { Harm::NONE };
    // A rank test has no error that could be made wider, and the trend that is taken out of groups harms it more than the t test.
    // Where neighbours of one arm would do any harm, the t test judges groups alone.
    // Which units there are was settled by the design alone, before any value was looked at. A choice by the values would be
    // a choice of the winner.
    let judged = match &design.units {
        Units::Pairs(units) => of_pairs(units, &logs, harm.inflation, design.scope),
        Units::Groups(groups) => of_groups(groups, &logs, found.inflation <= 1.0, design.scope),
        Units::Nothing => None,
    }?;
    if judged.ranks.is_some() {
        return Some(judged);
    }
    // Where ranks take part, p was made larger instead: a wider t would leave the rank test as bold as it was.
    let log = Estimate { se: judged.log.se * harm.inflation.sqrt(), df: judged.log.df.min(harm.df), ..judged.log };
    Some(Judged { log, ..judged })
}

/// Returns the harm that runs which resemble their neighbours could do to the t test of this design.
fn harm(design: &Design) -> Harm {
    let error = |values: &[f64]| {
        let mut logs = [0, 1].map(|side| vec![0.0; design.order.iter().filter(|(of, _)| *of == side).count()]);
        design.order.iter().zip(values).for_each(|((side, place), value)| logs[*side][*place] = *value);
        match &design.units {
            Units::Pairs(units) => t_of_pairs(units, &pairs(units, &logs)).map(|found| found.0),
            Units::Groups(groups) => {
                let [a, b] = [0, 1].map(|side| timed(&groups[side], &logs[side]));
                t_of_groups(&a, &b).map(|found| found.0)
            }
            Units::Nothing => None,
        }
    };
    serial::harm(design.order.len(), error)
}

fn average(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

/// The baseline's and the arm's value of each unit.
fn pairs(units: &[Linked], logs: &[Vec<f64>; 2]) -> Vec<(f64, f64)> {
    let of = |unit: &Linked, side: usize| {
        // The mean of blocks and not of runs: a block that has two runs of one arm would else count twice on that side alone.
        average(unit.blocks.iter().map(|block| average(block[side].iter().map(|place| logs[side][*place]))))
    };
    units.iter().map(|unit| (of(unit, 0), of(unit, 1))).collect()
}

/// The difference within units, and whether a trend was taken out of it.
fn t_of_pairs(units: &[Linked], pairs: &[(f64, f64)]) -> Option<(Estimate, bool)> {
    let Some(gap) = one_order(units) else { return Some((paired(pairs)?, false)) };
    let differences: Vec<f64> = pairs.iter().map(|(a, b)| b - a).collect();
    // The mean of a pair holds the drift and no difference of the arms, so the slope is estimated from that.
    let drift: Vec<Timed> = units.iter().zip(pairs).map(|(unit, (a, b))| (unit.at, (a + b) / 2.0)).collect();
    Some((trend::without_slope(&differences, gap, &drift)?, true))
}

fn of_pairs(units: &[Linked], logs: &[Vec<f64>; 2], inflation: f64, scope: Scope) -> Option<Judged> {
    let pairs = pairs(units, logs);
    let means = (average(pairs.iter().map(|pair| pair.0)), average(pairs.iter().map(|pair| pair.1)));
    let (log, trend) = t_of_pairs(units, &pairs)?;
    let ranks = (inflation <= COVERED && !trend && pairs.len() >= RANKED_PAIRS)
        .then(|| Ranks::of_differences(&pairs.iter().map(|(a, b)| b - a).collect::<Vec<f64>>()));
    // Both tests are harmed alike, so both are made surer by as much as the error of one may be too small.
    let factor = if ranks.is_some() { BOTH * inflation.sqrt() } else { 1.0 };
    let method = Method::Paired { units: units.len() as u32, df: log.df, trend };
    Some(Judged { means, log, ranks, factor, method, scope })
}

/// By how much the arm came later than the baseline, where it nearly always did, or was nearly always first: a linear trend alone
/// would then lie further from 0 than its own error.
fn one_order(units: &[Linked]) -> Option<f64> {
    let gaps: Option<Vec<f64>> = units.iter().map(|unit| unit.gap).collect();
    let found = mean(&gaps?)?;
    (found.mean != 0.0 && found.mean.abs() > found.se).then_some(found.mean)
}

/// The value of each start of an arm, and its time.
fn timed(group: &[Alone], logs: &[f64]) -> Vec<Timed> {
    group.iter().map(|unit| (unit.at, average(unit.runs.iter().map(|place| logs[*place])))).collect()
}

/// The difference of two groups, and whether a trend was taken out of it.
fn t_of_groups(a: &[Timed], b: &[Timed]) -> Option<(Estimate, bool)> {
    // By the sizes and never by how large the slope looks: a pretest of the trend would spoil the level of the test after
    // it.
    let fitted = (a.len().min(b.len()) >= FITTED).then(|| trend::difference(a, b)).flatten();
    let plain = |values: &[Timed]| values.iter().map(|one| one.1).collect::<Vec<f64>>();
    fitted.map_or_else(|| welch(&plain(a), &plain(b)).map(|log| (log, false)), |log| Some((log, true)))
}

fn of_groups(groups: &[Vec<Alone>; 2], logs: &[Vec<f64>; 2], ranked: bool, scope: Scope) -> Option<Judged> {
    let [a, b] = [0, 1].map(|side| timed(&groups[side], &logs[side]));
    let means = (average(a.iter().map(|one| one.1)), average(b.iter().map(|one| one.1)));
    let (log, trend) = t_of_groups(&a, &b)?;
    let method = Method::Welch { baseline: a.len() as u32, arm: b.len() as u32, df: log.df, trend };
    let (least, most) = (a.len().min(b.len()), a.len().max(b.len()));
    // Groups of other sizes may spread by other amounts, which a rank test takes for a shift.
    let ranked = ranked && trend && least >= RANKED && 2 * most <= 3 * least;
    // By medians, since least squares would hand one slow run's weight on to all values before they are ranked.
    let slope = ranked.then(|| trend::median_slope(&[&a, &b])).flatten();
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

    /// Returns the judgement with an error of at least so much, where something else than the units tells that much. Units that
    /// happen to be alike are then no certainty, and their ranks none either.
    #[must_use]
    pub(super) fn at_least(self, se: f64) -> Judged {
        // It was not estimated from a few units, so that it is as sure as a normal error.
        let known = Estimate { se, df: KNOWN, ..self.log };
        let half = |of: Estimate| of.interval(LEVEL).1 - of.mean;
        if half(self.log) >= half(known) {
            return self;
        }
        Judged { log: known, ranks: None, factor: 1.0, ..self }
    }

    /// Arm ÷ baseline: the median of the ratios of units where ranks take part, else of their geometric means; within the interval.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.ratio_within(self.interval())
    }

    fn ratio_within(&self, Bounds { low, high }: Bounds) -> f64 {
        self.ranks.as_ref().map_or(self.log.mean, Ranks::estimate).exp().clamp(low, high)
    }

    /// Its 95 % interval: what neither test rejects.
    #[must_use]
    pub fn interval(&self) -> Bounds {
        // The interval and p are made surer by one factor. So the interval excludes 1 exactly where p is below 5 %.
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
        self.shows_within(self.interval(), p_adjusted)
    }

    fn shows_within(&self, interval: Bounds, p_adjusted: f64) -> Result<(), Unshown> {
        let ratio = self.ratio_within(interval);
        if interval.low <= 1.0 && interval.high >= 1.0 {
            Err(Unshown::IncludesOne)
        } else if ratio.max(1.0 / ratio) <= LEAST {
            Err(Unshown::TooSmall)
        // The table above the verdict shows means. A winner whose mean is the worse one would contradict it.
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
        let (interval, scope) = (self.interval(), self.scope);
        let ratio = self.ratio_within(interval);
        if let Err(because) = self.shows_within(interval, p_adjusted) {
            let detectable = self.detectable(verdicts);
            return Verdict::NoDifference { figure, ratio, interval, detectable, because, scope };
        }
        let (baseline, arm) = (names.0.to_owned(), names.1.to_owned());
        if (ratio > 1.0) == figure.more_is_better() {
            Verdict::Winner { arm, over: baseline, figure, ratio, interval, scope }
        } else {
            // The sentence has the better arm first, so ratio and interval are turned over with it.
            let interval = Bounds { low: 1.0 / interval.high, high: 1.0 / interval.low };
            Verdict::Winner { arm: baseline, over: arm, figure, ratio: 1.0 / ratio, interval, scope }
        }
    }
}
