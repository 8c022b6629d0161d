//! Whether a comparison was what it was meant to be: shares, prompts, failures, lag, and what the reader must know. Where a check
//! fails, no verdict is made. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::figure::Figure;
use super::judge::LEAST;
use super::model::{Gravity, Warning};
use super::options::{CompareError, Options};
use super::pair::Side;
use super::sessions;
use super::trial::{Group, Trial};
use super::verdict::{Balance, Balanced, SampleRatio, Scope};
use crate::rows::record::Record;
use crate::rows::row_file::{RunRows, Source};
use crate::rows::slo::Slo;
use crate::stats::check;
use crate::stats::estimate::welch;

/// A chance below this fails a check: rare enough to look at no split in vain.
const ALPHA: f64 = 0.001;
/// A load generator that is later than this at P99 is worth a word.
pub(super) const LATE_MS: f64 = 1.0;
/// The share of an arm's requests that may be left out because another arm served them.
const LEFT: f64 = 0.05;
/// Means this close are alike, however sure the difference.
const ALIKE: f64 = 1.02;

/// The checks of one load.
pub(super) struct Checked {
    at: String,
    pub(super) sample_ratio: Option<SampleRatio>,
    pub(super) balance: Vec<Balance>,
    pub(super) warnings: Vec<Warning>,
    /// The words of failed checks, and the arm that each is about; none: all.
    failed: Vec<(&'static str, Option<String>)>,
}

impl Checked {
    pub(super) fn of(group: &Group, sides: &[Side], options: &Options) -> Checked {
        let sample_ratio = if group.live { sample_ratio(sides, options) } else { None };
        let at = format!(" {}", super::format::load(group.load.offered));
        let balance = balance(sides, group.live);
        let mut checked = Checked { at, sample_ratio, balance, warnings: Vec::new(), failed: Vec::new() };
        checked.shares();
        checked.lengths(sides);
        checked.failures(sides);
        checked.models(sides);
        checked.same_load(group);
        checked
    }

    /// A failed check of one arm or all.
    fn fail(&mut self, check: &'static str, arm: Option<&str>, text: String) {
        self.failed.push((check, arm.map(str::to_owned)));
        self.say(Warning { gravity: Gravity::FailedCheck, check, text });
    }

    /// Adds a warning, once: several pairs of arms may have the same to say.
    fn say(&mut self, warning: Warning) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// A failed check of one of these arms, or of all.
    pub(super) fn failed(&self, arms: [&str; 2]) -> Option<&'static str> {
        let of_them = |arm: &Option<String>| arm.as_deref().is_none_or(|arm| arms.contains(&arm));
        self.failed.iter().find(|(_, arm)| of_them(arm)).map(|(check, _)| *check)
    }

    fn shares(&mut self) {
        let Some(ratio) = self.sample_ratio.as_ref().filter(|ratio| !ratio.passed) else { return };
        let arm = |(name, count, due): &(String, u64, f64)| format!("{name} {count} (expected {due:.0})");
        let arms: Vec<String> = ratio.arms.iter().map(arm).collect();
        let text = format!(
            "the split{} is not as configured: sessions of {} (p {}); the arms may not have had the same traffic",
            self.at,
            arms.join(", "),
            super::format::p(ratio.p),
        );
        self.fail("sample_ratio", None, text);
    }

    fn lengths(&mut self, sides: &[Side]) {
        for one in self.balance.clone().into_iter().filter(|one| !one.passed) {
            let what = match one.of {
                Balanced::PromptTokens => "prompts",
                Balanced::OutputTokens => "answers",
            };
            let text = format!(
                "{what}{} are not of the same length: {:.1} tokens on average in {}, {:.1} in {}",
                self.at, one.arm_mean, one.arm, one.baseline_mean, sides[0].arm
            );
            self.fail("balance", Some(&one.arm), text);
        }
    }

    fn failures(&mut self, sides: &[Side]) {
        for side in sides {
            let failed: u64 = side.measures.iter().map(|measures| measures.summary.failed).sum();
            let all: u64 = side.measures.iter().map(|measures| measures.all).sum();
            if failed > 0 {
                let text = format!(
                    "{failed} of {all} requests of {}{} failed; here their TTFT counts as infinite and they missed the SLO, all \
                     other figures are those of the others",
                    side.arm, self.at
                );
                // One in a hundred is what `kept_up` allows too: a rate of failures that no latency can make up for.
                if failed * 100 > all {
                    self.fail("failed", Some(side.arm), text);
                } else {
                    self.warnings.push(Warning { gravity: Gravity::Note, check: "failed", text });
                }
            }
            self.left_their_arm(side, all);
        }
    }

    /// Says how many requests another arm served, and fails the check where the rest is a selection.
    fn left_their_arm(&mut self, side: &Side, stayed: u64) {
        let crossed = crossed(side);
        let all = stayed + crossed;
        if crossed == 0 {
            return;
        }
        let text = format!(
            "{crossed} of {all} requests assigned to {}{} were served by another arm and are left out",
            side.arm, self.at
        );
        // Requests leave an arm when it is worst off, so that without many of them it looks better than it was.
        if crossed as f64 > all as f64 * LEFT {
            let text =
                format!("{text}: without them the arm looks better than it was (with `cross_arm = false` none leaves)");
            self.fail("crossed", Some(side.arm), text);
        } else {
            self.warnings.push(Warning { gravity: Gravity::Note, check: "crossed", text });
        }
    }

    /// Fails the check unless the arms were asked for one model.
    fn models(&mut self, sides: &[Side]) {
        let of_side = |side: &Side| -> BTreeSet<String> {
            side.trials.iter().filter_map(|trial| trial.head).map(|head| head.model.clone()).collect()
        };
        let models: BTreeSet<String> = sides.iter().flat_map(of_side).collect();
        if models.len() > 1 {
            let names: Vec<String> = models.into_iter().collect();
            let text = format!("the arms were asked for different models{}: {}", self.at, names.join(", "));
            self.fail("models", None, text);
        }
    }

    /// Checks that arms that ran in turn were sent as many requests in each epoch.
    fn same_load(&mut self, group: &Group) {
        let sizes = || group.trials.iter().map(|trial| trial.records.len() + trial.crossed.len());
        let (least, most) = (sizes().min().unwrap_or(0), sizes().max().unwrap_or(0));
        // Of a live split each block has what came in its time.
        // A run of fewer requests is a shorter run, whose tail has a larger part of the time and fewer sequences at once.
        if !group.live && most as f64 > least as f64 * ALIKE {
            let text = format!("epochs{} are not of the same size: {least} to {most} requests", self.at);
            self.fail("same_load", None, text);
        }
    }

    /// Checks whether the load generator's lateness could have changed the figure that decides by as much as names a winner.
    pub(super) fn lag(&mut self, sides: [&Side; 2], primary: Figure, slo: Option<&Slo>) {
        let runs = sides.iter().flat_map(|side| &side.trials).map(|trial| trial.run);
        let Some(late) = lag_p99_ms(runs).filter(|late| *late > LATE_MS) else { return };
        // The smallest of all runs, since lateness weighs most there.
        let beside = sides.iter().filter_map(|side| shortest(side, primary, slo)).fold(f64::INFINITY, f64::min);
        // The lateness of the worst hundredth is set against the whole figure: a bound, not an estimate.
        let share = late / beside;
        if share > LEAST - 1.0 {
            let text = format!(
                "the load generator was late by {late:.1} ms at P99{}: that is {:.0} % of what the figure that decides is made of",
                self.at,
                share * 100.0
            );
            self.fail("lag", Some(sides[1].arm), text);
        } else {
            let text = format!(
                "the load generator was late by {late:.1} ms at P99{}: too little to change {}, but times between events may be \
                 too long by as much",
                self.at,
                primary.noun()
            );
            self.say(Warning { gravity: Gravity::Note, check: "lag", text });
        }
    }
}

/// The time in milliseconds that a lateness would change a figure through: its own where it is one, the limits of the SLO, or how long
/// answers take. A TPOT is the mean of an answer's gaps, so that a late look at its first or last event is shared by all of them.
fn shortest(side: &Side, figure: Figure, slo: Option<&Slo>) -> Option<f64> {
    let least = |values: &mut dyn Iterator<Item = f64>| values.min_by(f64::total_cmp);
    let gaps = side.measures.iter().map(|measures| measures.summary.gaps_an_answer()).fold(f64::INFINITY, f64::min);
    if figure.is_time() {
        let times = if matches!(figure, Figure::TpotMedian | Figure::TpotP99) { gaps } else { 1.0 };
        let own = side.measures.iter().filter_map(|measures| measures.figures.get(&figure).copied());
        return least(&mut own.map(|value| value * times));
    }
    if let Some(slo) = slo.filter(|_| figure == Figure::SloMisses) {
        let millis = |limit: Option<Duration>| limit.map(|limit| limit.as_secs_f64() * 1e3);
        let limits = [millis(slo.ttft), millis(slo.tpot).map(|limit| limit * gaps), millis(slo.e2e)];
        return least(&mut limits.into_iter().flatten());
    }
    least(&mut side.measures.iter().filter_map(|measures| measures.summary.e2e_ms.p50))
}

/// Tests whether a live split gave each arm its share of the sessions, which it assigns; none where the rows do not tell them.
fn sample_ratio(sides: &[Side], options: &Options) -> Option<SampleRatio> {
    let sessions = |side: &Side| -> Option<u64> {
        // Also those that left their arm: the split assigned them.
        let assigned = side.trials.iter().flat_map(|trial| trial.records.iter().chain(&trial.crossed).copied());
        let records: Vec<&Record> = assigned.collect();
        sessions::split(&records).map(|sessions| sessions.len() as u64)
    };
    let counts: Vec<u64> = sides.iter().map(sessions).collect::<Option<_>>()?;
    let shares: Vec<f64> = sides.iter().map(|side| options.shares.get(side.arm).copied().unwrap_or(1.0)).collect();
    let (expected, p) = check::sample_ratio(&counts, &shares)?;
    let arms = sides.iter().zip(counts).zip(expected).map(|((side, count), due)| (side.arm.to_owned(), count, due));
    Some(SampleRatio { arms: arms.collect(), p, passed: p >= ALPHA })
}

/// The lengths of prompts or answers of a side: of a live split the means of sessions, whose requests resemble each other.
fn lengths(side: &Side, of: fn(&Record) -> u64, live: bool) -> Vec<f64> {
    let records = side.trials.iter().flat_map(|trial| trial.records.iter().copied());
    let good: Vec<&Record> = records.filter(|record| record.succeeded()).collect();
    match sessions::split(&good).filter(|_| live) {
        Some(sessions) => sessions
            .iter()
            .map(|records| records.iter().map(|record| of(record) as f64).sum::<f64>() / records.len() as f64)
            .collect(),
        None => good.into_iter().map(|record| of(record) as f64).collect(),
    }
}

/// Compares the lengths of the arms' prompts and answers, each arm beside the first.
fn balance(sides: &[Side], live: bool) -> Vec<Balance> {
    let Some((baseline, others)) = sides.split_first() else { return Vec::new() };
    let mut out = Vec::new();
    for arm in others {
        for of in [Balanced::PromptTokens, Balanced::OutputTokens] {
            let tokens = match of {
                Balanced::PromptTokens => |record: &Record| record.prompt_tokens,
                Balanced::OutputTokens => |record: &Record| record.output_tokens,
            };
            // Of whole requests only. A cut answer is short because it was cut, which the check of failures says.
            let (a, b) = (lengths(baseline, tokens, live), lengths(arm, tokens, live));
            let Some(estimate) = welch(&a, &b) else { continue };
            let baseline_mean = a.iter().sum::<f64>() / a.len() as f64;
            let arm_mean = baseline_mean + estimate.mean;
            let apart = (arm_mean / baseline_mean).max(baseline_mean / arm_mean);
            // Both: a sure difference of a thousandth of a token harms nobody, and a large one of few requests may be chance.
            let (arm, p) = (arm.arm.to_owned(), estimate.p());
            out.push(Balance { arm, of, baseline_mean, arm_mean, p, passed: apart <= ALIKE || p >= ALPHA });
        }
    }
    out
}

/// Requests that another arm than their own served.
pub(super) fn crossed(side: &Side) -> u64 {
    side.trials.iter().map(|trial| trial.crossed.len()).sum::<usize>() as u64
}

/// Returns the load generator's lateness at P99, in milliseconds, in the worst of these runs.
pub(super) fn lag_p99_ms<'a>(runs: impl Iterator<Item = &'a RunRows>) -> Option<f64> {
    // Of real traffic there is no generator that could be late.
    let generated = |run: &&RunRows| run.head.as_ref().is_none_or(|head| head.source == Source::Generator);
    runs.filter(generated).filter_map(|run| run.end).map(|end| end.lag_p99_us).max().map(|late| late as f64 / 1e3)
}

/// Notes that nobody said when the experiment was to end.
pub(super) fn no_plan(warnings: &mut Vec<Warning>) {
    let text = "the rows do not say how many starts were planned: the error rate of a verdict holds only if that number was fixed \
                before the first report was read; give it as --planned-starts N";
    warnings.push(Warning { gravity: Gravity::Note, check: "no_plan", text: text.to_owned() });
}

/// Runs of an arm on one start that were sent the same prompts: the prefix cache knew them.
pub(super) fn same_seed(groups: &[Group], warnings: &mut Vec<Warning>) {
    let mut sent: BTreeMap<(&str, u32, u64), u32> = BTreeMap::new();
    let trials = groups.iter().filter(|group| !group.live).flat_map(|group| &group.trials);
    for (trial, start, head) in trials.filter_map(|trial: &Trial| Some((trial, trial.start?, trial.head?))) {
        *sent.entry((&trial.arm, start, head.load.seed)).or_default() += 1;
    }
    let mut arms: Vec<&str> = sent.iter().filter(|(_, times)| **times > 1).map(|((arm, ..), _)| *arm).collect();
    // The map is sorted by arm first, so that equal names are neighbours.
    arms.dedup();
    if !arms.is_empty() {
        let text = format!(
            "{} had the same seed more than once on one start of its servers: they may have known the prompts (give each run \
             another --seed)",
            arms.join(" and ")
        );
        warnings.push(Warning { gravity: Gravity::Scope, check: "seed", text });
    }
}

/// The warnings of the whole report.
pub(super) fn of_runs(runs: &[RunRows], scope: Scope, warnings: &mut Vec<Warning>) {
    let heading = match scope {
        Scope::AnyStart => None,
        Scope::TheseStarts => Some((
            "these_starts",
            "within these starts: the epochs shared starts of the servers, or it is not known whether they did, so how much \
             another start would change is not in the intervals",
        )),
        Scope::OneRun => Some((
            "one_run",
            "within these runs only: how much other runs would change is not known, so ratios have no interval",
        )),
    };
    if let Some((check, text)) = heading {
        warnings.push(Warning { gravity: Gravity::Scope, check, text: text.to_owned() });
    }
    let heads = || runs.iter().filter_map(|run| run.head.as_ref());
    if heads().any(|head| head.source == Source::AccessLog) {
        let text = "from an access log, which does not tell the times between tokens (so no ITL), what the servers' metrics said (so \
                    no reason why an arm is as fast as it is), nor which start of the servers answered";
        warnings.push(Warning { gravity: Gravity::Scope, check: "access_log", text: text.to_owned() });
    }
    if heads().any(|head| head.simulated) {
        let all = runs.iter().all(|run| run.head.as_ref().is_some_and(|head| head.simulated));
        let text = format!("simulated servers: {} of the runs had no GPU", if all { "all" } else { "some" });
        warnings.push(Warning { gravity: Gravity::Scope, check: "simulated", text });
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
