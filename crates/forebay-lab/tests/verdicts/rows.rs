//! Rows that once fooled the report: each fault at its rate, through the whole comparison.

use fastrand::Rng;
use forebay_lab::compare::figure::Figure;
use forebay_lab::compare::model::{Comparison, Gravity};
use forebay_lab::compare::report::text::text;
use forebay_lab::compare::verdict::{Crossing, PlannedUnit, Unjudged, Verdict};
use forebay_lab::compare::{Options, compare};
use forebay_lab::rows::record::{Outcome, Record};
use forebay_lab::rows::row_file::{self, Load, Offered, RunEnd, RunHead, RunRows};

use crate::made::normal;
use crate::rates::{full, generator};

/// A run to be made up.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) arm: &'static str,
    pub(crate) epoch: u32,
    pub(crate) start: Option<u32>,
    pub(crate) block: Option<u32>,
    pub(crate) load: Load,
    pub(crate) requests: u32,
    /// Of this run.
    pub(crate) ttft_ms: f64,
    pub(crate) e2e_ms: f64,
    /// The share of requests that fail, the slowest of them.
    pub(crate) fails: f64,
    pub(crate) planned: Option<u32>,
}

pub(crate) fn at(offered: Offered) -> Load {
    Load { offered, num_prompts: 40, input_len: Some(100), output_len: Some(100), ..Load::default() }
}

impl Run {
    pub(crate) fn of(arm: &'static str, epoch: u32, offered: Offered) -> Run {
        Run {
            arm,
            epoch,
            start: Some(epoch),
            block: None,
            load: at(offered),
            requests: 40,
            ttft_ms: 200.0,
            e2e_ms: 600.0,
            fails: 0.0,
            planned: None,
        }
    }

    pub(crate) fn rows(&self, rng: &mut Rng) -> RunRows {
        let mut records: Vec<Record> = (0..self.requests)
            .map(|id| {
                let us = |ms: f64| (ms * 1e3) as u64;
                let sent_us = match self.load.offered {
                    Offered::Rate(rate) => (f64::from(id) / rate * 1e6) as u64,
                    _ => 0,
                };
                let ttft = self.ttft_ms * (0.3 * normal(rng)).exp();
                let end = self.e2e_ms.max(ttft) * (0.02 * normal(rng)).exp();
                Record {
                    arm: Some(self.arm.to_owned()),
                    sent_us,
                    first_event_us: Some(us(ttft)),
                    first_token_us: Some(us(ttft)),
                    last_event_us: Some(us(end.max(ttft))),
                    end_us: us(end.max(ttft)),
                    prompt_tokens: 100,
                    output_tokens: 100,
                    outcome: Outcome::Success,
                    status: Some(200),
                    ..Record::unsent(id, self.epoch)
                }
            })
            .collect();
        let mut slowest: Vec<usize> = (0..records.len()).collect();
        slowest.sort_by_key(|place| std::cmp::Reverse(records[*place].first_event_us));
        for place in slowest.into_iter().take((self.fails * f64::from(self.requests)).round() as usize) {
            records[place].outcome = Outcome::Status;
            records[place].status = Some(503);
        }
        let head = RunHead {
            arm: Some(self.arm.to_owned()),
            epoch: self.epoch,
            block: self.block,
            start: self.start,
            planned_starts: self.planned,
            load: Load { seed: u64::from(self.epoch), num_prompts: self.requests, ..self.load.clone() },
            model: "m".to_owned(),
            gpus: Some(2),
            ..RunHead::default()
        };
        RunRows { head: Some(head), records, samples: vec![], end: Some(RunEnd { lag_p99_us: 90 }) }
    }
}

fn read(name: &str) -> Vec<RunRows> {
    let path = format!("{}/tests/verdicts/rows/{name}.jsonl", env!("CARGO_MANIFEST_DIR"));
    row_file::read(std::fs::read(path).unwrap().as_slice()).unwrap()
}

fn reported(name: &str) -> Comparison {
    compare(&read(name), &Options::default()).unwrap()
}

pub(crate) fn verdict(comparison: &Comparison) -> &Verdict {
    &comparison.points[0].pairs[0].verdict
}

pub(crate) fn because(comparison: &Comparison) -> Unjudged {
    match verdict(comparison) {
        Verdict::NotJudged { because } => *because,
        other => panic!("{other:?}"),
    }
}

/// Experiments through whole reports, which take longer.
fn sweeps() -> u32 {
    if full() { 20_000 } else { 2000 }
}

#[test]
fn one_run_an_arm_names_no_better_arm_and_no_crossover() {
    let comparison = reported("sweep_one_run_AA");
    assert_eq!(comparison.crossovers, []);
    assert!(!text(&comparison).contains("better"), "{}", text(&comparison));
    assert!(
        comparison
            .points
            .iter()
            .flat_map(|point| &point.pairs)
            .all(|pair| pair.ratios.iter().all(|one| { one.interval.is_none() && !one.shown }))
    );
}

/// A sweep over four rates, each arm's runs on starts of their own.
fn sweep(runs: u32, rng: &mut Rng) -> Vec<RunRows> {
    let mut rows = Vec::new();
    let mut epoch = 0;
    for rate in [1.0, 2.0, 4.0, 8.0] {
        for run in 0..2 * runs {
            let speed = (0.06 * normal(rng)).exp();
            let arm = if run % 2 == 0 { "tp2" } else { "tp1x2" };
            let made =
                Run { ttft_ms: 200.0 * speed, e2e_ms: 600.0 * speed, ..Run::of(arm, epoch, Offered::Rate(rate)) };
            rows.push(Run { requests: 24, ..made }.rows(rng));
            epoch += 1;
        }
    }
    rows
}

#[test]
fn a_sweep_of_alike_arms_seldom_names_a_better_one() {
    let mut rng = generator(21);
    let (mut verdicts, mut crossovers) = (0, 0);
    for _ in 0..sweeps() {
        let comparison = compare(&sweep(5, &mut rng), &Options::default()).unwrap();
        let pairs = comparison.points.iter().flat_map(|point| &point.pairs);
        verdicts += u32::from(pairs.into_iter().any(|pair| matches!(pair.verdict, Verdict::Winner { .. })));
        crossovers += u32::from(comparison.crossovers.iter().any(|one| one.found != Crossing::Unshown));
    }
    let percent = |count: u32| 100.0 * f64::from(count) / f64::from(sweeps());
    println!(
        "sweeps of five runs: a winner in {:.2} %, a crossover's line that names one in {:.2} %",
        percent(verdicts),
        percent(crossovers)
    );
    let most = if full() { 6.0 } else { 7.0 };
    // Two families: the verdicts, and all other figures.
    assert!(percent(verdicts) <= most && percent(crossovers) <= 2.0 * most);
}

#[test]
fn no_verdict_over_failed_requests() {
    let mut rng = generator(22);
    let runs = |fails: f64, rng: &mut Rng| -> Vec<RunRows> {
        let run = |epoch: u32| {
            let (arm, fails) = if epoch.is_multiple_of(2) { ("a", 0.0) } else { ("b", fails) };
            Run { fails, requests: 200, ..Run::of(arm, epoch, Offered::Rate(5.0)) }
        };
        (0..10).map(|epoch| run(epoch).rows(rng)).collect()
    };
    let comparison = compare(&runs(0.37, &mut rng), &Options::default()).unwrap();
    assert_eq!(because(&comparison), Unjudged::FailedCheck { check: "failed" });
    assert_eq!((comparison.warnings[0].gravity, comparison.warnings[0].check), (Gravity::FailedCheck, "failed"));
    assert!(text(&comparison).contains("FAILED CHECK"), "{}", text(&comparison));
    let p95 = comparison.points[0].cells[1].figures.iter().find(|one| one.figure == Figure::TtftP95);
    assert_eq!(p95, None, "a third of the requests never had a first token");
    // Few failures are no failed check; the slowest are not left out of the figure that decides.
    let comparison = compare(&runs(0.01, &mut rng), &Options::default()).unwrap();
    let figure = |arm: usize, of: fn(&forebay_lab::rows::summary::Latency) -> Option<f64>| {
        let epochs = &comparison.points[0].cells[arm].epochs;
        epochs
            .iter()
            .map(|epoch| (epoch.figures[&Figure::TtftP95], of(&epoch.summary.ttft_ms).unwrap()))
            .collect::<Vec<_>>()
    };
    assert!(figure(1, |ttft| ttft.p95).iter().all(|(with, without)| with > without));
    assert!(figure(0, |ttft| ttft.p95).iter().all(|(with, without)| (with - without).abs() < 1e-9));
    assert!(text(&comparison).contains("failed requests counted as infinite"));
}

#[test]
fn starts_that_nobody_told_name_no_winner() {
    let comparison = reported("bench_rows_no_start_AA");
    assert!(matches!(because(&comparison), Unjudged::StartsUnknown | Unjudged::NotAlternating));
    let mut rng = generator(23);
    let untold = |epoch: u32| {
        let (arm, speed) = if epoch.is_multiple_of(2) { ("a", 1.0) } else { ("b", 1.4) };
        Run { start: None, ttft_ms: 200.0 * speed, ..Run::of(arm, epoch, Offered::Rate(5.0)) }
    };
    let runs: Vec<RunRows> = (0..10).map(|epoch| untold(epoch).rows(&mut rng)).collect();
    let comparison = compare(&runs, &Options::default()).unwrap();
    assert_eq!(because(&comparison), Unjudged::StartsUnknown);
    let said = text(&comparison);
    assert!(
        said.contains("95 % interval") && said.contains("within these starts") && !said.contains("better"),
        "{said}"
    );
}

#[test]
fn all_of_one_arm_and_then_all_of_the_other_are_not_judged() {
    let comparison = reported("all_A_then_all_B_drift_AA");
    assert_eq!(because(&comparison), Unjudged::NotAlternating);
    assert!(comparison.points[0].pairs[0].ratios.iter().all(|ratio| ratio.interval.is_none()));
    assert!(text(&comparison).contains("Run them A, B, B, A"), "the remedy is named");
}

#[test]
fn runs_that_a_clock_puts_one_after_the_other_are_not_judged_whatever_their_numbers() {
    let mut rng = generator(24);
    let mut runs: Vec<RunRows> = Vec::new();
    for (arm, first) in [("a", 0), ("b", 5000)] {
        for epoch in 0..5 {
            let made =
                Run { block: Some(epoch), start: Some(first + epoch), ..Run::of(arm, epoch, Offered::Rate(5.0)) };
            let mut rows = made.rows(&mut rng);
            rows.head.as_mut().unwrap().began_ms = Some(u64::from(first + epoch) * 60_000);
            runs.push(rows);
        }
    }
    assert_eq!(because(&compare(&runs, &Options::default()).unwrap()), Unjudged::NotAlternating);
}

#[test]
fn a_true_tenth_on_shared_starts_is_named() {
    let comparison = reported("together_6x3_true10");
    assert!(matches!(verdict(&comparison), Verdict::Winner { .. }), "{}", text(&comparison));
}

#[test]
fn an_experiment_is_judged_when_its_plan_is_done_and_not_before_or_after() {
    let mut rng = generator(25);
    let run = |epoch: u32, rng: &mut Rng| {
        let (arm, speed) = if epoch.is_multiple_of(2) { ("a", 1.0) } else { ("b", 1.5) };
        Run { planned: Some(5), ttft_ms: 200.0 * speed, ..Run::of(arm, epoch, Offered::Rate(5.0)) }.rows(rng)
    };
    let runs: Vec<RunRows> = (0..12).map(|epoch| run(epoch, &mut rng)).collect();
    let of = |count: usize| compare(&runs[..count], &Options::default()).unwrap();
    assert_eq!(because(&of(8)), Unjudged::Interim { of: PlannedUnit::Starts, done: 4, planned: 5 });
    assert!(matches!(verdict(&of(10)), Verdict::Winner { .. }));
    assert_eq!(because(&of(12)), Unjudged::BeyondPlan { of: PlannedUnit::Starts, done: 6, planned: 5 });
    let told = Options { planned_starts: Some(6), ..Options::default() };
    assert!(matches!(verdict(&compare(&runs, &told).unwrap()), Verdict::Winner { .. }), "the command says it");
    // The plan of an experiment counts runs: a start that was cut off and made up for is no more evidence, and no less.
    let mut counted: Vec<RunRows> = (0..12).map(|epoch| run(epoch, &mut rng)).collect();
    counted.iter_mut().for_each(|rows| rows.head.as_mut().unwrap().planned_runs = Some(6));
    let of = |count: usize| compare(&counted[..count], &Options::default()).unwrap();
    assert_eq!(because(&of(11)), Unjudged::Interim { of: PlannedUnit::Runs, done: 5, planned: 6 });
    assert!(text(&of(11)).contains("5 of 6 planned runs of each arm are here"), "{}", text(&of(11)));
    assert!(matches!(verdict(&of(12)), Verdict::Winner { .. }), "six starts, where the rows once said five");
    // A plan that grew after the first rows was made by somebody who may have read a report.
    counted[0].head.as_mut().unwrap().planned_runs = Some(4);
    let grown = compare(&counted, &Options::default()).unwrap();
    assert_eq!(because(&grown), Unjudged::BeyondPlan { of: PlannedUnit::Runs, done: 6, planned: 4 });
    // Stopping at a winner: of experiments without a difference, looked at after every block.
    let mut stopped = 0;
    for _ in 0..sweeps() / 4 {
        let alike = |epoch: u32, rng: &mut Rng| {
            let speed = (0.05 * normal(rng)).exp();
            let arm = if epoch.is_multiple_of(2) { "a" } else { "b" };
            Run { planned: Some(6), requests: 8, ttft_ms: 200.0 * speed, ..Run::of(arm, epoch, Offered::Rate(5.0)) }
                .rows(rng)
        };
        let runs: Vec<RunRows> = (0..12).map(|epoch| alike(epoch, &mut rng)).collect();
        let named = |count: usize| {
            let comparison = compare(&runs[..count], &Options::default()).unwrap();
            matches!(verdict(&comparison), Verdict::Winner { .. })
        };
        stopped += u32::from((3..=6).any(|block| named(2 * block)));
    }
    let percent = 100.0 * f64::from(stopped) / f64::from(sweeps() / 4);
    println!("looked at after every block of a plan: a false winner in {percent:.2} %");
    assert!(percent <= if full() { 6.0 } else { 7.5 });
}

#[test]
fn shares_of_an_slo_are_compared_by_their_misses() {
    let mut rng = generator(26);
    let run = |epoch: u32, rng: &mut Rng| {
        let (arm, misses) = if epoch.is_multiple_of(2) { ("a", 1) } else { ("b", 19) };
        let mut rows = Run { requests: 1000, ..Run::of(arm, epoch, Offered::Rate(50.0)) }.rows(rng);
        for (place, record) in rows.records.iter_mut().enumerate() {
            let missed = place % 50 == 0 && place / 50 < misses;
            record.first_event_us = Some(if missed { 550_000 } else { 200_000 + (normal(rng) * 1e3) as u64 });
        }
        rows
    };
    let runs: Vec<RunRows> = (0..12).map(|epoch| run(epoch, &mut rng)).collect();
    let options = Options { slo: Some("ttft=500ms".parse().unwrap()), ..Options::default() };
    let comparison = compare(&runs, &options).unwrap();
    let Verdict::Winner { arm, ratio, figure, .. } = verdict(&comparison) else { panic!("{}", text(&comparison)) };
    assert_eq!((arm.as_str(), *figure), ("a", Figure::SloMisses));
    assert!((ratio - 1.0 / 19.0).abs() < 0.01, "{ratio}");
}

/// Epochs of forty requests, of which each misses the SLO with such a chance.
fn with_misses(chances: [f64; 2], starts: u32, rng: &mut Rng) -> Comparison {
    let run = |epoch: u32, rng: &mut Rng| {
        let side = (epoch % 2) as usize;
        let mut rows = Run::of(["a", "b"][side], epoch, Offered::Rate(50.0)).rows(rng);
        for record in &mut rows.records {
            record.first_event_us = Some(if rng.f64() < chances[side] { 550_000 } else { 200_000 });
            record.last_event_us = record.last_event_us.max(record.first_event_us);
        }
        rows
    };
    let runs: Vec<RunRows> = (0..2 * starts).map(|epoch| run(epoch, rng)).collect();
    let options = Options { slo: Some("ttft=500ms".parse().unwrap()), ..Options::default() };
    compare(&runs, &options).unwrap()
}

#[test]
fn misses_that_are_rare_make_no_false_winners_and_no_certainty() {
    let mut rng = generator(31);
    let none = with_misses([0.0, 0.0], 4, &mut rng);
    let Verdict::NoDifference { interval, detectable, .. } = verdict(&none) else { panic!("{}", text(&none)) };
    assert!(
        interval.low < 0.2 && interval.high > 5.0 && *detectable > 5.0,
        "no misses in 160 requests: {}",
        text(&none)
    );
    for (starts, chance) in [(3, 0.02), (5, 0.03), (8, 0.1)] {
        let (mut winners, mut covered) = (0, 0);
        for _ in 0..sweeps() / 4 {
            let comparison = with_misses([chance; 2], starts, &mut rng);
            winners += u32::from(matches!(verdict(&comparison), Verdict::Winner { .. }));
            let interval = comparison.points[0].pairs[0].ratios[0].interval.unwrap();
            covered += u32::from(interval.low <= 1.0 && 1.0 <= interval.high);
        }
        let percent = |count: u32| 100.0 * f64::from(count) / f64::from(sweeps() / 4);
        println!(
            "misses of {:.0} %, {starts} starts of 40: a false winner in {:.2} %, covered in {:.2} %",
            chance * 100.0,
            percent(winners),
            percent(covered)
        );
        assert!(percent(winners) <= if full() { 6.0 } else { 8.0 } && percent(covered) >= 92.0, "{starts} {chance}");
    }
}
