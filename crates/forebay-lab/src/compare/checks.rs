//! Whether a comparison was what it was meant to be: shares, prompts, failures, lag, and what the reader must know. Pure.

use super::model::{Gravity, Warning};
use super::options::{CompareError, Options};
use super::pair::Side;
use super::trial::Group;
use super::verdict::{Balance, Balanced, SampleRatio, Scope};
use crate::rows::record::Record;
use crate::rows::row_file::RunRows;
use crate::stats::check;
use crate::stats::estimate::welch;

/// A chance below this fails a check: rare enough to look at no split in vain.
const ALPHA: f64 = 0.001;
/// A load generator that is later than this at P99 shows in the figures.
pub(super) const LATE_MS: f64 = 1.0;
/// Means this close are alike, however sure the difference.
const ALIKE: f64 = 1.02;

/// Whether a live split gave each arm its share.
pub(super) fn sample_ratio(sides: &[Side], options: &Options) -> Option<SampleRatio> {
    let counts: Vec<u64> =
        sides.iter().map(|side| side.trials.iter().map(|trial| trial.records.len() as u64).sum()).collect();
    let shares: Vec<f64> = sides.iter().map(|side| options.shares.get(side.arm).copied().unwrap_or(1.0)).collect();
    let (expected, p) = check::sample_ratio(&counts, &shares)?;
    let arms = sides.iter().zip(counts).zip(expected).map(|((side, count), due)| (side.arm.to_owned(), count, due));
    Some(SampleRatio { arms: arms.collect(), p, passed: p >= ALPHA })
}

/// Whether arms got the same prompts and made answers of the same length, each beside the first.
pub(super) fn balance(sides: &[Side]) -> Vec<Balance> {
    let Some((baseline, others)) = sides.split_first() else { return Vec::new() };
    let lengths = |side: &Side, of: fn(&Record) -> u64| -> Vec<f64> {
        let records = side.trials.iter().flat_map(|trial| &trial.records);
        records.filter(|record| record.succeeded()).map(|record| of(record) as f64).collect()
    };
    let mut out = Vec::new();
    for arm in others {
        for of in [Balanced::PromptTokens, Balanced::OutputTokens] {
            let tokens = match of {
                Balanced::PromptTokens => |record: &Record| record.prompt_tokens,
                Balanced::OutputTokens => |record: &Record| record.output_tokens,
            };
            let (a, b) = (lengths(baseline, tokens), lengths(arm, tokens));
            let Some(estimate) = welch(&a, &b) else { continue };
            let baseline_mean = a.iter().sum::<f64>() / a.len() as f64;
            let arm_mean = baseline_mean + estimate.mean;
            let apart = (arm_mean / baseline_mean).max(baseline_mean / arm_mean);
            let (arm, p) = (arm.arm.to_owned(), estimate.p());
            out.push(Balance { arm, of, baseline_mean, arm_mean, p, passed: apart <= ALIKE || p >= ALPHA });
        }
    }
    out
}

/// The warnings of one load.
pub(super) fn of_point(
    at: &str,
    sides: &[Side],
    ratio: Option<&SampleRatio>,
    balance: &[Balance],
    warnings: &mut Vec<Warning>,
) {
    let mut fail = |check, text| warnings.push(Warning { gravity: Gravity::FailedCheck, check, text });
    if let Some(ratio) = ratio.filter(|ratio| !ratio.passed) {
        let arm = |(name, count, due): &(String, u64, f64)| format!("{name} {count} (expected {due:.0})");
        let arms: Vec<String> = ratio.arms.iter().map(arm).collect();
        let text = format!(
            "the split{at} is not as configured: requests of {} (p {}); the arms may not have had the same traffic, or few \
             sessions sent most of it",
            arms.join(", "),
            super::format::p(ratio.p),
        );
        fail("sample_ratio", text);
    }
    for one in balance.iter().filter(|one| !one.passed) {
        let what = match one.of {
            Balanced::PromptTokens => "prompts",
            Balanced::OutputTokens => "answers",
        };
        let text = format!(
            "{what}{at} are not of the same length: {:.1} tokens on average in {}, {:.1} in {}",
            one.arm_mean, one.arm, one.baseline_mean, sides[0].arm
        );
        fail("balance", text);
    }
    for side in sides {
        let failed: u64 = side.measures.iter().map(|measures| measures.summary.failed).sum();
        let all: u64 = side.measures.iter().map(|measures| measures.all).sum();
        if failed > 0 {
            let gravity = if failed * 100 > all { Gravity::FailedCheck } else { Gravity::Note };
            let text = format!(
                "{failed} of {all} requests of {}{at} failed; but for goodput its figures are those of the others",
                side.arm
            );
            warnings.push(Warning { gravity, check: "failed", text });
        }
        let crossed = crossed(side);
        if crossed > 0 {
            let text = format!(
                "{crossed} of {all} requests assigned to {}{at} were served by another arm; they count for {}",
                side.arm, side.arm
            );
            warnings.push(Warning { gravity: Gravity::Note, check: "crossed", text });
        }
    }
}

/// Requests that another arm than their own served.
pub(super) fn crossed(side: &Side) -> u64 {
    let other = |record: &&&Record| match (&record.assigned, &record.arm) {
        (Some(assigned), Some(arm)) => assigned != arm,
        _ => false,
    };
    side.trials.iter().flat_map(|trial| &trial.records).filter(other).count() as u64
}

/// Whether arms that ran in turn were sent as many requests in each epoch.
pub(super) fn same_load(at: &str, group: &Group, warnings: &mut Vec<Warning>) {
    let size = |trial: &super::trial::Trial| trial.records.len();
    let (least, most) =
        (group.trials.iter().map(size).min().unwrap_or(0), group.trials.iter().map(size).max().unwrap_or(0));
    if !group.live && most as f64 > least as f64 * ALIKE {
        let text = format!("epochs{at} are not of the same size: {least} to {most} requests");
        warnings.push(Warning { gravity: Gravity::FailedCheck, check: "same_load", text });
    }
}

/// How late the load generator was at P99, in the worst run.
pub(super) fn lag_p99_ms(runs: &[RunRows]) -> Option<f64> {
    runs.iter().filter_map(|run| run.end).map(|end| end.lag_p99_us).max().map(|late| late as f64 / 1e3)
}

/// The warnings of the whole report.
pub(super) fn of_runs(runs: &[RunRows], lag_p99_ms: Option<f64>, scope: Scope, warnings: &mut Vec<Warning>) {
    if let Some(late) = lag_p99_ms.filter(|late| *late > LATE_MS) {
        let text = format!("the load generator was late by {late:.1} ms at P99: its own delay is in the figures");
        warnings.push(Warning { gravity: Gravity::FailedCheck, check: "lag", text });
    }
    let heading = match scope {
        Scope::AnyStart => None,
        Scope::TheseStarts => Some((
            "these_starts",
            "within these starts: the epochs shared starts of the servers, or it is not known whether they did, so how much \
             another start would change is not in the intervals",
        )),
        Scope::OneRun => Some((
            "one_run",
<<<<<<< ours
            "within one run only: fewer than three epochs a side, so how much another run would change is not in the \
             intervals, and no winner is named",
=======
            "within these runs only: how much other runs would change is not known, so ratios have no interval",
>>>>>>> theirs
        )),
    };
    if let Some((check, text)) = heading {
        warnings.push(Warning { gravity: Gravity::Scope, check, text: text.to_owned() });
    }
    let heads = || runs.iter().filter_map(|run| run.head.as_ref());
    if heads().any(|head| head.simulated) {
        let all = runs.iter().all(|run| run.head.as_ref().is_some_and(|head| head.simulated));
        let text = format!("simulated servers: {} of the runs had no GPU", if all { "all" } else { "some" });
        warnings.push(Warning { gravity: Gravity::Scope, check: "simulated", text });
    }
    let mut models: Vec<&str> = heads().map(|head| head.model.as_str()).collect();
    models.sort_unstable();
    models.dedup();
    if models.len() > 1 {
        let text = format!("the arms were asked for different models: {}", models.join(", "));
        warnings.push(Warning { gravity: Gravity::Note, check: "models", text });
    }
}

/// Prices, shares and the block's length must be above 0.
pub(super) fn options(options: &Options) -> Result<(), CompareError> {
    let priced = options.prices.iter().map(|(arm, value)| ("--price", arm, *value));
    for (flag, arm, value) in priced.chain(options.shares.iter().map(|(arm, value)| ("--share", arm, *value))) {
        if !(value.is_finite() && value > 0.0) {
            return Err(CompareError::NotPositive { flag, arm: arm.clone(), value });
        }
    }
    if options.block.is_zero() { Err(CompareError::NoBlock) } else { Ok(()) }
}
