//! Live splits: sessions are what was assigned, and their requests resemble each other.

use fastrand::Rng;
use forebay_lab::compare::model::Comparison;
use forebay_lab::compare::report::text::text;
use forebay_lab::compare::verdict::{Unjudged, Verdict};
use forebay_lab::compare::{Options, compare};
use forebay_lab::rows::record::{Outcome, Record};
use forebay_lab::rows::row_file::{Load, Offered, RunEnd, RunHead, RunRows};

use crate::made::normal;
use crate::rates::{full, generator, margin};

/// An hour of sessions, each of one arm for all its life, which is longer than a block, and as slow as its own prompts are.
fn split(sessions: u32, each: u32, told: bool, ratio: f64, start: Option<u32>, rng: &mut Rng) -> RunRows {
    let mut records = Vec::new();
    for session in 0..sessions {
        let arm = if rng.bool() { "a" } else { "b" };
        let level = (0.5 * normal(rng)).exp() * if arm == "b" { ratio } else { 1.0 };
        let requests = 1 + rng.u32(0..2 * each - 1);
        for _ in 0..requests {
            let ttft = (200e3 * level * (0.2 * normal(rng)).exp()) as u64;
            records.push(Record {
                arm: Some(arm.to_owned()),
                session: told.then(|| format!("{:08x}{session:08x}", start.unwrap_or(0))),
                sent_us: (rng.f64() * 3.6e9) as u64,
                first_event_us: Some(ttft),
                first_token_us: Some(ttft),
                last_event_us: Some(ttft + 60_000),
                end_us: ttft + 60_000,
                prompt_tokens: 100,
                output_tokens: 4,
                outcome: Outcome::Success,
                status: Some(200),
                ..Record::unsent(records.len() as u32, 0)
            });
        }
    }
    records.sort_by_key(|record| record.sent_us);
    let load = Load { offered: Offered::Rate(0.5), num_prompts: records.len() as u32, ..Load::default() };
    let head = RunHead { start, load, model: "m".to_owned(), ..RunHead::default() };
    RunRows { head: Some(head), records, samples: vec![], end: Some(RunEnd { lag_p99_us: 90 }) }
}

fn compared(runs: &[RunRows]) -> Comparison {
    let options = Options { baseline: Some("a".to_owned()), ..Options::default() };
    compare(runs, &options).unwrap()
}

fn experiments() -> u32 {
    if full() { 2000 } else { 200 }
}

#[test]
fn a_split_of_sessions_is_checked_and_compared_by_session() {
    let mut rng = generator(31);
    let (mut failed, mut winners, mut covered, mut intervals) = (0, 0, 0, 0);
    for _ in 0..experiments() {
        let comparison = compared(&[split(500, 3, true, 1.0, Some(0), &mut rng)]);
        let point = &comparison.points[0];
        failed += u32::from(!point.sample_ratio.as_ref().unwrap().passed);
        let pair = &point.pairs[0];
        winners += u32::from(matches!(pair.verdict, Verdict::Winner { .. }));
        if let Some(interval) = pair.ratios[0].interval {
            intervals += 1;
            covered += u32::from(interval.low <= 1.0 && 1.0 <= interval.high);
        }
    }
    let percent = |count: u32, of: u32| 100.0 * f64::from(count) / f64::from(of);
    let held = percent(covered, intervals);
    println!(
        "live splits of 500 sessions: ratio check failed in {:.2} %, covered in {held:.2} %",
        percent(failed, experiments())
    );
    assert_eq!((winners, intervals), (0, experiments()), "one start names no winner and has an interval");
    assert!(percent(failed, experiments()) <= 0.5 && held >= 93.5 - 2.0 * margin(), "{failed} {held}");
}

#[test]
fn a_split_whose_sessions_nobody_told_has_no_interval_and_its_ratio_is_not_known() {
    let mut rng = generator(32);
    let comparison = compared(&[split(60, 5, false, 1.0, Some(0), &mut rng)]);
    let point = &comparison.points[0];
    assert_eq!(point.sample_ratio, None);
    assert!(point.pairs[0].ratios.iter().all(|ratio| ratio.interval.is_none()));
    let Verdict::NotJudged { because } = point.pairs[0].verdict else { panic!("{}", text(&comparison)) };
    assert_eq!(because, Unjudged::SessionsUnknown);
}

#[test]
fn a_split_of_three_starts_is_judged() {
    let mut rng = generator(33);
    let runs: Vec<RunRows> = (0..4).map(|start| split(150, 4, true, 2.0, Some(start), &mut rng)).collect();
    let comparison = compared(&runs);
    assert!(
        matches!(&comparison.points[0].pairs[0].verdict, Verdict::Winner { arm, .. } if arm == "a"),
        "{}",
        text(&comparison)
    );
    let mut winners = 0;
    for _ in 0..experiments() / 4 {
        let runs: Vec<RunRows> = (0..4).map(|start| split(150, 4, true, 1.0, Some(start), &mut rng)).collect();
        winners += u32::from(matches!(compared(&runs).points[0].pairs[0].verdict, Verdict::Winner { .. }));
    }
    let percent = 100.0 * f64::from(winners) / f64::from(experiments() / 4);
    println!("live splits of four starts: a false winner in {percent:.2} %");
    assert!(percent <= 8.0, "{percent}");
}
