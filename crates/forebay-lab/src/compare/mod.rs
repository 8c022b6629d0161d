//! The comparison of arms, from the rows of their runs: epochs, figures, intervals, verdicts, checks. The epoch is the unit
//! of the statistics, since requests of one run are not independent. Pure: chance comes from a seed.

mod checks;
pub mod crossover;
pub mod design;
pub mod figure;
pub mod format;
pub mod judge;
mod measure;
pub mod model;
pub mod next;
mod options;
mod pair;
pub mod report;
mod sessions;
mod trial;
pub mod verdict;

use std::collections::BTreeMap;

use crate::diagnosis::{Diagnosis, Evidence, agreed, diagnose};
use crate::rows::kept_up::kept_up;
use crate::rows::record::Record;
use crate::rows::row_file::{Offered, RunRows, Source};
use crate::rows::summary::Summary;
use crate::stats::estimate::mean;
use figure::Figure;
use measure::Divisors;
use model::{Arm, Cell, Comparison, Epoch, Gravity, Measured, Point, Throughput, Warning};
pub use options::{CompareError, Options};
use pair::{Raw, Side, Terms};
use trial::{Group, Trial};
use verdict::{Bounds, Crossover, LoadAxis, Scope};

/// Runs of an arm from which the mean of a figure has an interval.
const ENOUGH: usize = 3;

/// Compares the arms of these runs, whichever files they were in.
///
/// # Errors
/// There are not two arms with a load in common, or an option names an arm that is not there.
pub fn compare(runs: &[RunRows], options: &Options) -> Result<Comparison, CompareError> {
    checks::options(options)?;
    let note = |text: &String| Warning { gravity: Gravity::Note, check: "left_out", text: text.clone() };
    let mut warnings: Vec<Warning> = options.notes.iter().map(note).collect();
    let groups = trial::gather(runs, options, &mut warnings)?;
    let names = trial::arms(&groups, runs, options)?;
    let arms: Vec<Arm> = names.iter().map(|name| arm(name, &groups, options)).collect();
    let mut rng = fastrand::Rng::with_seed(options.seed);
    let mut points = Vec::new();
    let mut raws: Vec<(usize, Raw)> = Vec::new();
    for group in &groups {
        let (point, pairs) = point(group, &arms, options, &mut warnings, &mut rng);
        raws.extend(pairs.into_iter().map(|raw| (points.len(), raw)));
        points.push(point);
    }
    if raws.is_empty() {
        return Err(CompareError::NothingInCommon(format::loads_by_arm(&points)));
    }
    let (places, mut raws): (Vec<usize>, Vec<Raw>) = raws.into_iter().unzip();
    // Verdicts wait for all pairs: how many there are is part of each.
    pair::conclude(&mut raws);
    let scope = raws.iter().map(|raw| raw.scope).max().unwrap_or(Scope::AnyStart);
    if raws.iter().any(|raw| raw.is_judged() && !raw.planned) {
        checks::no_plan(&mut warnings);
    }
    let crossovers = crossovers(&points, &places, &raws, &mut rng);
    let next = next::steps(&groups, &places, &raws, options);
    for (place, raw) in places.into_iter().zip(raws) {
        points[place].pairs.push(raw.pair);
    }
    checks::of_runs(runs, scope, &mut warnings);
    checks::same_seed(&groups, &mut warnings);
    unknown_gpus(&arms, &points, &mut warnings);
    // A stable sort: within a gravity they stay in the order of the loads.
    warnings.sort_by_key(|warning| warning.gravity);
    let (baseline, lag_p99_ms) = (arms[0].name.clone(), checks::lag_p99_ms(runs.iter()));
    let heads = || runs.iter().filter_map(|run| run.head.as_ref());
    let hosts: std::collections::BTreeSet<&str> = heads().filter_map(|head| head.host.as_deref()).collect();
    // Of rows from two hosts neither is the host of the report.
    let host = if hosts.len() == 1 { hosts.first().map(|host| (*host).to_owned()) } else { None };
    let began_ms = heads().filter_map(|head| head.began_ms).min();
    Ok(Comparison {
        warnings,
        scope,
        baseline,
        arms,
        began_ms,
        host,
        slo: options.slo,
        lag_p99_ms,
        points,
        next,
        crossovers,
    })
}

fn arm(name: &str, groups: &[Group], options: &Options) -> Arm {
    let trials = || groups.iter().flat_map(|group| &group.trials).filter(|trial| trial.arm == name);
    // The head of a live split tells of all arms at once, so not how many GPUs this one has.
    let heads = || trials().filter_map(|trial| trial.head);
    let own = || heads().filter(|head| head.arm.is_some());
    Arm {
        name: name.to_owned(),
        gpus: options.gpus.get(name).copied().or_else(|| own().find_map(|head| head.gpus)),
        price_per_hour: options.prices.get(name).copied(),
        replicas: own().find_map(|head| head.replicas),
        max_num_seqs: own().find_map(|head| head.max_num_seqs),
        model: heads().map(|head| head.model.clone()).next().unwrap_or_default(),
        simulated: heads().any(|head| head.simulated),
    }
}

fn point(
    group: &Group,
    arms: &[Arm],
    options: &Options,
    warnings: &mut Vec<Warning>,
    rng: &mut fastrand::Rng,
) -> (Point, Vec<Raw>) {
    let slo = options.slo.as_ref();
    let side = |arm: &'_ Arm| {
        let trials: Vec<&Trial> = group.trials.iter().filter(|trial| trial.arm == arm.name).collect();
        let by = Divisors { gpus: arm.gpus, price_per_hour: arm.price_per_hour };
        let measures = trials.iter().map(|trial| measure::measure(trial, slo, by)).collect();
        let arm = group.trials.iter().find(|trial| trial.arm == arm.name)?.arm.as_str();
        Some(Side { arm, by, trials, measures })
    };
    let sides: Vec<Side> = arms.iter().filter_map(side).collect();
    let mut checked = checks::Checked::of(group, &sides, options);
    let mut raws = Vec::new();
    // Where a baseline was named, it is what the others are compared with. Else every arm is compared with every other one: with
    // three arms, which is best takes all three pairs.
    for (place, baseline) in sides.iter().enumerate() {
        if options.baseline.is_some() && baseline.arm != arms[0].name {
            continue;
        }
        for other in &sides[place + 1..] {
            let gpus = baseline.by.gpus.is_some() && other.by.gpus.is_some();
            let primary = pair::primary(group.load.offered, slo.is_some(), gpus);
            checked.lag([baseline, other], primary, slo);
            let terms = Terms {
                primary,
                live: group.live,
                throughput: [baseline, other].iter().all(|side| throughput(side, group) == Throughput::OfTheArm),
                failed: checked.failed([baseline.arm, other.arm]),
                options,
            };
            raws.push(pair::pair(baseline, other, &terms, rng));
        }
    }
    let point = Point {
        offered: group.load.offered,
        burstiness: group.load.burstiness,
        max_concurrency: group.load.max_concurrency,
        dataset: group.load.dataset.clone(),
        input_len: group.load.input_len,
        output_len: group.load.output_len,
        live_split: group.live,
        cells: sides.iter().map(|side| cell(side, throughput(side, group))).collect(),
        pairs: Vec::new(),
        sample_ratio: checked.sample_ratio,
        balance: checked.balance,
    };
    warnings.extend(checked.warnings);
    (point, raws)
}

/// Tells whose an arm's throughput is: the load's wherever it kept up with a rate, in one of its runs at least.
fn throughput(side: &Side, group: &Group) -> Throughput {
    if !matches!(group.load.offered, Some(Offered::Rate(_) | Offered::Trace(_) | Offered::Traffic) | None) {
        return Throughput::OfTheArm;
    }
    // Of a live split an arm has a share, so that the rate is not its own: its trend tells.
    let found: Vec<Option<bool>> =
        side.trials.iter().map(|trial| kept_up(group.load.offered, &trial.records).map(|found| found.holds)).collect();
    match (found.contains(&Some(true)), found.contains(&None)) {
        (true, _) => Throughput::OfTheLoad,
        (false, true) => Throughput::Unclear,
        (false, false) => Throughput::OfTheArm,
    }
}

fn cell(side: &Side, throughput: Throughput) -> Cell {
    let records = || side.trials.iter().flat_map(|trial| trial.records.iter().copied());
    let duration_s = side.measures.iter().map(|measures| measures.summary.duration_s).sum();
    let good = || records().filter(|record| record.succeeded());
    let epoch = |(trial, measures): (&&Trial, &measure::Measures)| Epoch {
        epoch: trial.epoch,
        block: trial.block,
        start: trial.start,
        summary: measures.summary,
        figures: measures.figures.clone(),
        timeline: measure::timeline(trial.samples),
    };
    let mut epochs: Vec<Epoch> = side.trials.iter().zip(&side.measures).map(epoch).collect();
    epochs.sort_by_key(|epoch| epoch.epoch);
    let pooled = Summary { duration_s, ..Summary::of(records()) };
    Cell {
        arm: side.arm.to_owned(),
        crossed: checks::crossed(side),
        figures: Figure::ALL
            .iter()
            .filter(|figure| throughput == Throughput::OfTheArm || !figure.follows_load())
            .filter_map(|figure| measured(*figure, &epochs))
            .collect(),
        throughput,
        epochs,
        ttft: measure::quantiles(good().filter_map(Record::ttft)),
        tpot: measure::quantiles(good().filter_map(Record::tpot)),
        diagnosis: diagnosis(side),
        pooled,
    }
}

/// Diagnoses what bound the arm, run by run; a live split is one run, which its blocks share.
fn diagnosis(side: &Side) -> Option<Diagnosis> {
    let mut runs: Vec<&RunRows> = Vec::new();
    // A log has neither gaps nor looks at servers, so that whatever were said would be a guess.
    let told = |trial: &&&Trial| trial.head.is_some_and(|head| head.source == Source::Generator);
    for trial in side.trials.iter().filter(told) {
        if !runs.iter().any(|run| std::ptr::eq(*run, trial.run)) {
            runs.push(trial.run);
        }
    }
    let of_run = |run: &&RunRows| {
        let told = run.head.as_ref().is_some_and(|head| head.arm.is_some());
        diagnose(&Evidence::of(run, if told { None } else { Some(side.arm) }))
    };
    agreed(&runs.iter().map(of_run).collect::<Vec<_>>())
}

fn measured(figure: Figure, epochs: &[Epoch]) -> Option<Measured> {
    let values: Option<Vec<f64>> = epochs.iter().map(|epoch| epoch.figures.get(&figure).copied()).collect();
    let values = values.filter(|values| !values.is_empty())?;
    let few_requests = figure.is_p99() && epochs.iter().any(|epoch| epoch.summary.requests < 500);
    if values.iter().any(|value| *value <= 0.0) {
        // No logarithm, so neither a geometric mean nor its interval.
        let value = values.iter().sum::<f64>() / values.len() as f64;
        return Some(Measured { figure, value, interval: None, few_requests });
    }
    let logs: Vec<f64> = values.iter().map(|value| value.ln()).collect();
    let value = (logs.iter().sum::<f64>() / logs.len() as f64).exp();
    let interval = mean(&logs).filter(|_| logs.len() >= ENOUGH).map(|estimate| {
        let (low, high) = estimate.interval(judge::LEVEL);
        Bounds { low: low.exp(), high: high.exp() }
    });
    Some(Measured { figure, value, interval, few_requests })
}

/// The crossovers of each sweep: loads that differ in their rate, or their concurrency, alone. A load where no winner may be named
/// is no part of it.
fn crossovers(points: &[Point], places: &[usize], raws: &[Raw], rng: &mut fastrand::Rng) -> Vec<Crossover> {
    type Key<'a> = (LoadAxis, [&'a str; 2], Option<&'a str>, [Option<u32>; 3], u64, Figure);
    let mut sweeps: BTreeMap<Key, Vec<crossover::SweepPoint>> = BTreeMap::new();
    for (place, raw) in places.iter().zip(raws) {
        let point = &points[*place];
        let (axis, load) = match point.offered {
            Some(Offered::Rate(rate)) => (LoadAxis::Rate, rate),
            Some(Offered::Concurrency(count)) => (LoadAxis::Concurrency, f64::from(count)),
            _ => continue,
        };
        for ratio in &raw.pair.ratios {
            let Some(log) = raw.log(ratio.figure) else { continue };
            let lengths = [point.input_len, point.output_len, point.max_concurrency];
            let burst = point.burstiness.unwrap_or(1.0).to_bits();
            let pair = [raw.pair.baseline.as_str(), raw.pair.arm.as_str()];
            let key = (axis, pair, point.dataset.as_deref(), lengths, burst, ratio.figure);
            sweeps.entry(key).or_default().push(crossover::SweepPoint { load, log, shown: ratio.shown });
        }
    }
    let mut found = Vec::new();
    for ((axis, [baseline, arm], .., figure), sweep) in sweeps {
        // One load has no curve.
        if sweep.len() < 2 {
            continue;
        }
        for crossing in crossover::crossings(figure, (baseline, arm), &sweep, rng) {
            let (baseline, arm) = (baseline.to_owned(), arm.to_owned());
            found.push(Crossover { figure, baseline, arm, axis, found: crossing });
        }
    }
    found
}

fn unknown_gpus(arms: &[Arm], points: &[Point], warnings: &mut Vec<Warning>) {
    let decides = |point: &Point| matches!(point.offered, Some(Offered::Unlimited | Offered::Concurrency(_)));
    let unknown: Vec<&str> = arms.iter().filter(|arm| arm.gpus.is_none()).map(|arm| arm.name.as_str()).collect();
    if !unknown.is_empty() && points.iter().any(decides) {
        let text = format!(
            "how many GPUs {} had is not known (--gpus ARM=N tells): output tokens/s decide, as if arms had as many",
            unknown.join(" and ")
        );
        warnings.push(Warning { gravity: Gravity::Note, check: "gpus", text });
    }
}
