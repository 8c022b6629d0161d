//! An arm beside the baseline at one load: a ratio for each figure, and after all pairs of a report are known, their verdicts. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::design::{Design, Turn};
use super::figure::Figure;
use super::judge::{Judged, judge};
use super::measure::{Divisors, Measures};
use super::options::Options;
use super::sessions::{self, BySession};
use super::trial::Trial;
use super::verdict::{Method, Pair, PlannedUnit, Ratio, Scope, Unjudged, Verdict};
use crate::rows::record::Record;
use crate::rows::row_file::{Offered, RunHead};
use crate::stats::estimate::Estimate;
use crate::stats::multiple::holm;
use crate::stats::proportion;

/// An arm at one load, while it is compared.
pub(super) struct Side<'a> {
    pub(super) arm: &'a str,
    pub(super) by: Divisors,
    pub(super) trials: Vec<&'a Trial<'a>>,
    pub(super) measures: Vec<Measures>,
}

impl Side<'_> {
    /// A figure run by run; none if a run lacks it.
    fn values(&self, figure: Figure, half: bool) -> Option<Vec<f64>> {
        self.measures.iter().map(|measures| measures.positive(figure, half)).collect()
    }

    /// Returns whether a share of the SLO has no logarithm in some run.
    fn has_zero(&self, figure: Figure) -> bool {
        self.measures.iter().any(|measures| measures.figures.get(&figure).is_some_and(|value| *value <= 0.0))
    }

    fn turns(&self, clock: bool) -> Vec<Turn> {
        let turn = |trial: &&Trial| {
            let began = trial.began_ms.filter(|_| clock).map(|ms| ms as f64);
            Turn { block: trial.block, start: trial.start, at: began.unwrap_or(f64::from(trial.epoch)) }
        };
        self.trials.iter().map(turn).collect()
    }

    fn records(&self) -> Vec<&Record> {
        self.trials.iter().flat_map(|trial| trial.records.iter().copied()).collect()
    }

    /// Returns what was planned of the arm, how much of it there is, and how much was planned; none where the rows tell no plan.
    ///
    /// A plan that grew was made after the first rows, which somebody may have looked at. So the smallest number counts.
    fn plan(&self) -> Option<FixedNumber> {
        let told = |of: fn(&RunHead) -> Option<u32>| self.trials.iter().filter_map(|trial| of(trial.head?)).min();
        // A start that was cut off is made up for by another one, so that runs say more surely how far a plan is.
        let runs = |planned| FixedNumber { of: PlannedUnit::Runs, done: self.trials.len() as u32, planned };
        let starts = |planned| FixedNumber { of: PlannedUnit::Starts, done: self.starts() as u32, planned };
        told(|head| head.planned_runs).map(runs).or_else(|| told(|head| head.planned_starts).map(starts))
    }

    pub(super) fn starts(&self) -> usize {
        let known: std::collections::BTreeSet<u32> = self.trials.iter().filter_map(|trial| trial.start).collect();
        known.len()
    }
}

/// A number that was fixed before the first report was read.
#[derive(Clone, Copy)]
struct FixedNumber {
    of: PlannedUnit,
    done: u32,
    planned: u32,
}

impl FixedNumber {
    /// Returns why a pair is not judged where there are not as many as planned.
    fn off(self) -> Option<Unjudged> {
        let FixedNumber { of, done, planned } = self;
        match done.cmp(&planned) {
            Ordering::Less => Some(Unjudged::Interim { of, done, planned }),
            Ordering::Equal => None,
            Ordering::Greater => Some(Unjudged::BeyondPlan { of, done, planned }),
        }
    }
}

/// The terms by which a pair is compared.
pub(super) struct Terms<'a> {
    /// The figure that decides.
    pub(super) primary: Figure,
    /// True if both arms ran at once.
    pub(super) live: bool,
    /// True if throughput is the arms' own.
    pub(super) throughput: bool,
    /// A check of this pair that failed.
    pub(super) failed: Option<&'static str>,
    pub(super) options: &'a Options,
}

/// A pair before its verdict.
pub(super) struct Raw {
    pub(super) pair: Pair,
    /// Figure by figure, as far as it could be judged.
    judged: BTreeMap<Figure, Judged>,
    bar: Option<Unjudged>,
    pub(super) scope: Scope,
    /// True if the rows, or the command, say how many starts were planned.
    pub(super) planned: bool,
}

impl Raw {
    /// Returns whether a winner may be named.
    pub(super) fn is_judged(&self) -> bool {
        self.bar.is_none()
    }

    /// The logarithm of a figure's ratio with its error, where it could be judged.
    pub(super) fn log(&self, figure: Figure) -> Option<Estimate> {
        let judged = self.judged.get(&figure).filter(|_| self.is_judged())?;
        Some(Estimate { mean: judged.ratio().ln(), ..judged.log })
    }
}

/// The figure that decides.
pub(super) fn primary(offered: Option<Offered>, slo: bool, gpus_known: bool) -> Figure {
    match offered {
        // Fixed by the load, never by the rows: whoever may choose the figure afterwards finds one that shows something.
        Some(Offered::Unlimited | Offered::Concurrency(_)) if gpus_known => Figure::OutputTokensPerGpu,
        Some(Offered::Unlimited | Offered::Concurrency(_)) => Figure::OutputTokensPerSecond,
        Some(Offered::Rate(_) | Offered::Trace(_) | Offered::Traffic) | None if slo => Figure::SloMisses,
        Some(Offered::Rate(_) | Offered::Trace(_) | Offered::Traffic) | None => Figure::TtftP95,
    }
}

/// The ratios of an arm to the baseline.
pub(super) fn pair(baseline: &Side, arm: &Side, terms: &Terms, rng: &mut fastrand::Rng) -> Raw {
    let clock = [baseline, arm].iter().all(|side| side.trials.iter().all(|trial| trial.began_ms.is_some()));
    // Numbers of epochs order runs only where all of them lack a clock: half of each would mix two orders.
    let mut design = Design::of(&baseline.turns(clock), &arm.turns(clock), clock);
    // A split assigns sessions, so their spread is the chance of the split, however many requests each sends.
    let by_session = terms.live.then(|| split(baseline, arm, terms, rng)).flatten();
    if terms.live && by_session.is_none() {
        design = Design::nothing(Scope::OneRun, Unjudged::SessionsUnknown);
    }
    let mut judged = BTreeMap::new();
    let mut ratios = Vec::new();
    for figure in Figure::ALL.into_iter().filter(|figure| figure.is_compared()) {
        if figure.follows_load() && !terms.throughput {
            continue;
        }
        // In all epochs of both or in none: a half more here and not there would itself be a difference.
        let half = baseline.has_zero(figure) || arm.has_zero(figure);
        let (Some(a), Some(b)) = (baseline.values(figure, half), arm.values(figure, half)) else { continue };
        let found = match &by_session {
            Some(told) => of_sessions(told, figure, &design, &a, &b),
            // Runs that all missed nothing are alike to the last digit, and would make any difference certain.
            None => judge(&design, &a, &b).map(|found| found.at_least(of_counts(figure, [baseline, arm]))),
        };
        let few_requests = figure.is_p99() && [baseline, arm].iter().any(|side| few_requests(&side.measures));
        let means = found.as_ref().map_or_else(|| (geometric(&a), geometric(&b)), |found| found.means);
        let ratio = found.as_ref().map_or_else(|| (means.1 - means.0).exp(), Judged::ratio);
        let (p_t, p_rank) = found.as_ref().map(Judged::two_p).map_or((None, None), |(t, rank)| (Some(t), rank));
        ratios.push(Ratio {
            figure,
            primary: figure == terms.primary,
            baseline: means.0.exp(),
            arm: means.1.exp(),
            ratio,
            interval: found.as_ref().map(Judged::interval),
            method: found.as_ref().map_or(Method::Nothing, |found| found.method),
            p: found.as_ref().map(Judged::p),
            p_t,
            p_rank,
            p_adjusted: None,
            detectable: None,
            shown: false,
            few_requests,
        });
        judged.extend(found.map(|found| (figure, found)));
    }
    // A stable sort: the figure that decides first, the others as tables have them.
    ratios.sort_by_key(|ratio| !ratio.primary);
    let plans = plans(baseline, arm, terms.options);
    let bar = bar(&design, terms, &plans, ratios.first());
    // Sessions too few for the figure that decides.
    let bar = bar.or((terms.live && !judged.contains_key(&terms.primary)).then_some(Unjudged::SessionsUnknown));
    let because = bar.unwrap_or(Unjudged::NoFigure { figure: terms.primary });
    let pair = Pair {
        baseline: baseline.arm.to_owned(),
        arm: arm.arm.to_owned(),
        verdict: Verdict::NotJudged { because },
        ratios,
    };
    Raw { pair, judged, bar, scope: design.scope, planned: !plans.is_empty() }
}

/// Returns the plans of both: as the command says, or else the rows.
fn plans(baseline: &Side, arm: &Side, options: &Options) -> Vec<FixedNumber> {
    // The command goes before the rows, which may be of a time before plans were noted.
    if let Some(planned) = options.planned_starts {
        let done = baseline.starts().min(arm.starts()) as u32;
        return vec![FixedNumber { of: PlannedUnit::Starts, done, planned }];
    }
    [baseline, arm].into_iter().filter_map(Side::plan).collect()
}

/// Returns the reason why no winner may be named, the gravest first.
fn bar(design: &Design, terms: &Terms, plans: &[FixedNumber], first: Option<&Ratio>) -> Option<Unjudged> {
    // First of all: figures of unlike work say nothing, however they were gathered.
    if let Some(check) = terms.failed {
        return Some(Unjudged::FailedCheck { check });
    }
    let off_plan = || plans.iter().find_map(|plan| plan.off());
    let no_figure = first.is_none_or(|ratio| !ratio.primary).then_some(Unjudged::NoFigure { figure: terms.primary });
    design.bar.or_else(off_plan).or(no_figure)
}

fn split(baseline: &Side, arm: &Side, terms: &Terms, rng: &mut fastrand::Rng) -> Option<BySession> {
    let seconds: f64 = baseline.measures.iter().map(|measures| measures.summary.duration_s).sum();
    let (a, b) = (baseline.records(), arm.records());
    sessions::compared([(&a, baseline.by), (&b, arm.by)], seconds, terms.options.slo.as_ref(), rng)
}

/// Judges a figure by what sessions tell of it; with it the spread between starts, where there are enough of them.
fn of_sessions(told: &BySession, figure: Figure, design: &Design, a: &[f64], b: &[f64]) -> Option<Judged> {
    let (values, by_session) = told.figures.get(&figure)?;
    let means = (values.0.ln(), values.1.ln());
    let method = Method::Sessions { baseline: told.counts.0, arm: told.counts.1 };
    if design.scope != Scope::AnyStart {
        return Some(Judged::of_estimate(means, *by_session, method, Scope::TheseStarts));
    }
    let by_start = judge(design, a, b)?.log;
    // Sessions tell the chance of the split, starts that of the servers. The errors are of unlike things, and add up.
    let se = by_session.se.hypot(by_start.se);
    let log = Estimate { se, df: by_session.df.min(by_start.df), ..*by_session };
    Some(Judged::of_estimate(means, log, method, Scope::AnyStart))
}

/// The error of the logarithm of a ratio of shares that so many requests have at least, were they independent: epochs that all had
/// one miss, or none, do not spread, and still tell little. Of other figures it is 0.
fn of_counts(figure: Figure, sides: [&Side; 2]) -> f64 {
    let counts = |side: &Side| {
        let sum = |of: fn(&Measures) -> u64| side.measures.iter().map(of).sum::<u64>() as f64;
        let (met, all) = (sum(|measures| measures.met), sum(|measures| measures.all));
        let counted = match figure {
            Figure::SloMisses => all - met,
            Figure::Goodput | Figure::GoodputPerGpu => met,
            _ => return None,
        };
        Some((counted as u64, all as u64))
    };
    match (counts(sides[0]), counts(sides[1])) {
        (Some(a), Some(b)) => proportion::log_ratio_error(a, b),
        _ => 0.0,
    }
}

fn few_requests(measures: &[Measures]) -> bool {
    measures.iter().any(|measures| measures.summary.requests < 500)
}

fn geometric(values: &[f64]) -> f64 {
    values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64
}

/// The verdicts of a report, each by its own interval and by its p adjusted for how many there are; and the same for all other
/// figures of all pairs, which are a family of their own.
pub(super) fn conclude(raws: &mut [Raw]) {
    for primary in [true, false] {
        let mut places = Vec::new();
        for (place, raw) in raws.iter().enumerate() {
            let own = raw.pair.ratios.iter().enumerate();
            let counts = |one: &Ratio| raw.bar.is_none() && one.primary == primary && one.p.is_some();
            places.extend(own.filter(|(_, one)| counts(one)).map(|(at, _)| (place, at)));
        }
        let many = places.len() > 1;
        let p = |(place, at): &(usize, usize)| {
            let raw = &raws[*place];
            let judged = raw.judged.get(&raw.pair.ratios[*at].figure);
            judged.map_or(1.0, |judged| if many { judged.p_of_many() } else { judged.p() })
        };
        let ps: Vec<f64> = places.iter().map(p).collect();
        for ((place, at), p) in places.iter().zip(holm(&ps)) {
            let raw = &mut raws[*place];
            let ratio = &mut raw.pair.ratios[*at];
            let Some(judged) = raw.judged.get(&ratio.figure) else { continue };
            // After Holm, since a family's size is known only once all its pairs are.
            ratio.p_adjusted = Some(p);
            ratio.detectable = Some(judged.detectable(ps.len()));
            ratio.shown = judged.shows(p).is_ok();
            if primary {
                let names = (raw.pair.baseline.as_str(), raw.pair.arm.as_str());
                raw.pair.verdict = judged.verdict(ratio.figure, names, p, ps.len());
            }
        }
    }
}
