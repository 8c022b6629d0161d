//! An arm beside the baseline at one load: a ratio for each figure, and after all pairs of a report are known, their verdicts. Pure.

use std::collections::BTreeMap;

use super::design::{Design, Turn, Units};
use super::figure::Figure;
use super::judge::{Judged, judge};
use super::measure::{Divisors, Measures};
use super::options::Options;
use super::sessions::{self, BySession};
use super::trial::Trial;
use super::verdict::{Method, Pair, Ratio, Scope, Unjudged, Verdict};
use crate::rows::record::Record;
use crate::rows::row_file::Offered;
use crate::stats::estimate::Estimate;
use crate::stats::multiple::holm;

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

    fn planned(&self) -> Option<u32> {
        self.trials.iter().filter_map(|trial| trial.head?.planned_starts).max()
    }

    pub(super) fn starts(&self) -> usize {
        let known: std::collections::BTreeSet<u32> = self.trials.iter().filter_map(|trial| trial.start).collect();
        known.len()
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
        Some(Offered::Unlimited | Offered::Concurrency(_)) if gpus_known => Figure::OutputTokensPerGpu,
        Some(Offered::Unlimited | Offered::Concurrency(_)) => Figure::OutputTokensPerSecond,
        Some(Offered::Rate(_) | Offered::Trace(_)) | None if slo => Figure::SloMisses,
        Some(Offered::Rate(_) | Offered::Trace(_)) | None => Figure::TtftP95,
    }
}

/// The ratios of an arm to the baseline.
pub(super) fn pair(baseline: &Side, arm: &Side, terms: &Terms, rng: &mut fastrand::Rng) -> Raw {
    let clock = [baseline, arm].iter().all(|side| side.trials.iter().all(|trial| trial.began_ms.is_some()));
    let mut design = Design::of(&baseline.turns(clock), &arm.turns(clock), clock);
    let by_session = terms.live.then(|| split(baseline, arm, terms, rng)).flatten();
    if terms.live && by_session.is_none() {
        design = Design { units: Units::Nothing, scope: Scope::OneRun, bar: Some(Unjudged::SessionsUnknown) };
    }
    let mut judged = BTreeMap::new();
    let mut ratios = Vec::new();
    for figure in Figure::ALL.into_iter().filter(|figure| figure.is_compared()) {
        if figure.follows_load() && !terms.throughput {
            continue;
        }
        let half = baseline.has_zero(figure) || arm.has_zero(figure);
        let (Some(a), Some(b)) = (baseline.values(figure, half), arm.values(figure, half)) else { continue };
        let found = match &by_session {
            Some(told) => of_sessions(told, figure, &design, &a, &b),
            None => judge(&design, &a, &b),
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
    ratios.sort_by_key(|ratio| !ratio.primary);
    let plan = planned(baseline, arm, terms.options);
    let bar = bar(&design, terms, plan, (baseline.starts().min(arm.starts())) as u32, ratios.first());
    // Sessions too few for the figure that decides.
    let bar = bar.or((terms.live && !judged.contains_key(&terms.primary)).then_some(Unjudged::SessionsUnknown));
    let because = bar.unwrap_or(Unjudged::NoFigure { figure: terms.primary });
    let pair = Pair {
        baseline: baseline.arm.to_owned(),
        arm: arm.arm.to_owned(),
        verdict: Verdict::NotJudged { because },
        ratios,
    };
    Raw { pair, judged, bar, scope: design.scope, planned: plan.is_some() }
}

/// Returns the number of starts that were planned of both.
fn planned(baseline: &Side, arm: &Side, options: &Options) -> Option<u32> {
    let told = [baseline, arm].iter().filter_map(|side| side.planned()).min();
    options.planned_starts.or(told)
}

/// Returns the reason why no winner may be named, the gravest first.
fn bar(design: &Design, terms: &Terms, plan: Option<u32>, starts: u32, first: Option<&Ratio>) -> Option<Unjudged> {
    if let Some(check) = terms.failed {
        return Some(Unjudged::FailedCheck { check });
    }
    let off_plan = plan.filter(|_| design.bar.is_none()).and_then(|planned| {
        (starts < planned)
            .then_some(Unjudged::Interim { starts, planned })
            .or((starts > planned).then_some(Unjudged::BeyondPlan { starts, planned }))
    });
    let no_figure = first.is_none_or(|ratio| !ratio.primary).then_some(Unjudged::NoFigure { figure: terms.primary });
    design.bar.or(off_plan).or(no_figure)
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
    let se = by_session.se.hypot(by_start.se);
    let log = Estimate { se, df: by_session.df.min(by_start.df), ..*by_session };
    Some(Judged::of_estimate(means, log, method, Scope::AnyStart))
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
