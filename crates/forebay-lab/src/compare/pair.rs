//! An arm beside the baseline at one load: a ratio for each figure, and after all pairs of a report are known, their verdicts. Pure.

use std::collections::BTreeMap;

use super::figure::Figure;
use super::judge::{ENOUGH, EpochValue, Judged, LEVEL, judge};
use super::measure::{Divisors, Drawing, Measures};
use super::trial::Trial;
use super::verdict::{Bounds, Method, Pair, Ratio, Scope, Unjudged, Verdict};
use crate::rows::row_file::Offered;
use crate::rows::slo::Slo;
use crate::stats::bootstrap::{draw, percentiles};
use crate::stats::estimate::Estimate;
use crate::stats::multiple::holm;

/// How often requests are drawn anew.
const DRAWS: u32 = 1000;

/// An arm at one load, while it is compared.
pub(super) struct Side<'a> {
    pub(super) arm: &'a str,
    pub(super) by: Divisors,
    pub(super) trials: Vec<&'a Trial<'a>>,
    pub(super) measures: Vec<Measures>,
}

impl Side<'_> {
    fn units(&self, figure: Figure, half: bool) -> Option<Vec<EpochValue>> {
        let unit = |(trial, measures): (&&Trial, &Measures)| {
            let value = measures.positive(figure, half)?;
            Some(EpochValue { block: trial.block, start: trial.start, value })
        };
        self.trials.iter().zip(&self.measures).map(unit).collect()
    }

    /// Whether no request of some epoch met the SLO.
    fn has_zero(&self) -> bool {
        self.measures.iter().any(|measures| measures.met == 0)
    }
}

/// A pair before its verdict.
pub(super) struct Raw {
    pub(super) pair: Pair,
    judged: Option<Judged>,
    pub(super) scope: Scope,
    /// For crossovers: figure by figure the logarithm of the ratio.
    pub(super) logs: BTreeMap<Figure, Estimate>,
}

/// The figure that decides.
pub(super) fn primary(offered: Option<Offered>, slo: bool, gpus_known: bool) -> Figure {
    match offered {
        Some(Offered::Unlimited | Offered::Concurrency(_)) if gpus_known => Figure::OutputTokensPerGpu,
        Some(Offered::Unlimited | Offered::Concurrency(_)) => Figure::OutputTokensPerSecond,
        Some(Offered::Rate(_) | Offered::Trace(_)) | None if slo => Figure::SloAttainment,
        Some(Offered::Rate(_) | Offered::Trace(_)) | None => Figure::TtftP95,
    }
}

/// The ratios of an arm to the baseline, by epochs, or by a bootstrap over requests where there are too few.
pub(super) fn pair(
    baseline: &Side,
    arm: &Side,
    primary: Figure,
    live: bool,
    slo: Option<&Slo>,
    rng: &mut fastrand::Rng,
) -> Raw {
    let few = baseline.trials.len() < ENOUGH || arm.trials.len() < ENOUGH;
    let drawn = if few { draws(baseline, arm, slo, rng) } else { BTreeMap::new() };
    let half = baseline.has_zero() || arm.has_zero();
    let mut logs = BTreeMap::new();
    let mut deciding = None;
    let mut ratios = Vec::new();
    for figure in Figure::ALL {
        let (Some(a), Some(b)) = (baseline.units(figure, half), arm.units(figure, half)) else { continue };
        let (value_a, value_b) = (geometric(&a), geometric(&b));
        let few_requests = figure.is_p99() && [baseline, arm].iter().any(|side| few_requests(&side.measures));
        let blank = Ratio {
            figure,
            primary: figure == primary,
            baseline: value_a,
            arm: value_b,
            ratio: value_b / value_a,
            interval: Bounds { low: 0.0, high: 0.0 },
            method: Method::Bootstrap { draws: DRAWS },
            p: None,
            p_adjusted: None,
            detectable: None,
            few_requests,
        };
        if let Some(judged) = judge(&a, &b, live) {
            logs.insert(figure, judged.log);
            if figure == primary {
                deciding = Some(judged);
            }
            ratios.push(Ratio {
                ratio: judged.ratio(),
                interval: judged.interval(),
                method: judged.method,
                p: Some(judged.log.p()),
                detectable: Some(judged.detectable()),
                ..blank
            });
        } else if let Some((low, high)) = drawn.get(&figure).and_then(|logs| percentiles(logs.clone(), LEVEL)) {
            if low == high {
                // Nothing that is drawn changes it, so the bootstrap knows nothing of its error.
                continue;
            }
            let interval = Bounds { low: low.exp(), high: high.exp() };
            // As if normal: what a crossover within one run needs.
            let se = (high - low) / (2.0 * 1.96);
            logs.insert(figure, Estimate { mean: blank.ratio.ln(), se, df: f64::from(DRAWS) });
            ratios.push(Ratio { interval, ..blank });
        }
    }
    ratios.sort_by_key(|ratio| !ratio.primary);
    adjust_others(&mut ratios);
    let because = if few {
        Unjudged::FewEpochs { baseline: baseline.trials.len() as u32, arm: arm.trials.len() as u32 }
    } else {
        Unjudged::NoFigure { figure: primary }
    };
    let scope = deciding.map_or(if few { Scope::OneRun } else { Scope::TheseStarts }, |judged| judged.scope);
    let names = (baseline.arm.to_owned(), arm.arm.to_owned());
    let pair = Pair { baseline: names.0, arm: names.1, verdict: Verdict::NotJudged { because }, ratios };
    Raw { pair, judged: deciding, scope, logs }
}

fn few_requests(measures: &[Measures]) -> bool {
    measures.iter().any(|measures| measures.summary.requests < 500)
}

fn geometric(units: &[EpochValue]) -> f64 {
    (units.iter().map(|unit| unit.value.ln()).sum::<f64>() / units.len() as f64).exp()
}

/// The logarithms of each figure's ratio over the draws.
fn draws(baseline: &Side, arm: &Side, slo: Option<&Slo>, rng: &mut fastrand::Rng) -> BTreeMap<Figure, Vec<f64>> {
    let prepared = |side: &Side| -> Vec<Drawing> {
        side.trials.iter().zip(&side.measures).map(|(trial, made)| Drawing::of(trial, made, slo, side.by)).collect()
    };
    let (baseline, arm) = (prepared(baseline), prepared(arm));
    let mut logs: BTreeMap<Figure, Vec<f64>> = BTreeMap::new();
    for _ in 0..DRAWS {
        let (a, b) = (mean_logs(&baseline, rng), mean_logs(&arm, rng));
        for (figure, b) in b {
            if let Some(a) = a.get(&figure) {
                logs.entry(figure).or_default().push(b - a);
            }
        }
    }
    logs
}

fn mean_logs(epochs: &[Drawing], rng: &mut fastrand::Rng) -> BTreeMap<Figure, f64> {
    let mut sums: BTreeMap<Figure, (f64, usize)> = BTreeMap::new();
    for epoch in epochs {
        for (figure, value) in epoch.figures(&draw(epoch.count(), rng)) {
            let sum = sums.entry(figure).or_default();
            *sum = (sum.0 + value.ln(), sum.1 + 1);
        }
    }
    let whole = sums.into_iter().filter(|(_, (_, count))| *count == epochs.len());
    whole.map(|(figure, (sum, count))| (figure, sum / count as f64)).collect()
}

/// Holm's adjustment of all but the primary figure.
fn adjust_others(ratios: &mut [Ratio]) {
    let mut others: Vec<&mut Ratio> = ratios.iter_mut().filter(|ratio| !ratio.primary && ratio.p.is_some()).collect();
    let adjusted = holm(&others.iter().filter_map(|ratio| ratio.p).collect::<Vec<_>>());
    for (ratio, p) in others.iter_mut().zip(adjusted) {
        ratio.p_adjusted = Some(p);
    }
}

/// The verdicts of a report, each by its own interval and by its p adjusted for how many there are.
pub(super) fn conclude(raws: &mut [Raw]) {
    let ps: Vec<f64> = raws.iter().filter_map(|raw| raw.judged.map(|judged| judged.log.p())).collect();
    let judged = raws.iter_mut().filter_map(|raw| raw.judged.map(|judged| (raw, judged)));
    for ((raw, judged), p) in judged.zip(holm(&ps)) {
        let names = (raw.pair.baseline.clone(), raw.pair.arm.clone());
        let Some(first) = raw.pair.ratios.first_mut().filter(|ratio| ratio.primary) else { continue };
        first.p_adjusted = Some(p);
        raw.pair.verdict = judged.verdict(first.figure, (&names.0, &names.1), p);
    }
}
