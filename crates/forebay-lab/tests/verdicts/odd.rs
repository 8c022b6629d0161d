//! Reports of rows that no careful hand gathered: every request failed, nothing spread, half of the blocks are missing, a clock went
//! back, streams had no token. No report may say what its table does not, nor show what is no number.

use std::collections::BTreeMap;

use fastrand::Rng;
use forebay_lab::compare::model::Comparison;
use forebay_lab::compare::report::html::{Made, html};
use forebay_lab::compare::report::markdown::markdown;
use forebay_lab::compare::report::text::text;
use forebay_lab::compare::verdict::{Unjudged, Verdict};
use forebay_lab::compare::{Options, compare};
use forebay_lab::rows::record::{Outcome, Record};
use forebay_lab::rows::row_file::{Offered, RunRows};

use crate::made::normal;
use crate::rates::{full, generator};
use crate::reports::{check_crossovers, check_pairs};
use crate::rows::Run;

/// Makes the enum and the list of all its members from one list.
macro_rules! oddities {
    ($($name:ident,)+) => {
        /// One thing that may be wrong with rows.
        #[derive(Clone, Copy, Debug, PartialEq)]
        enum Oddity {
            $($name,)+
        }

        const ODDITIES: &[Oddity] = &[$(Oddity::$name,)+];
    };
}

oddities! {
    AllOfOneArmFailed,
    EverythingFailed,
    OneRequestARun,
    NothingSpreads,
    TwoValues,
    HugeSpreads,
    AnArmWithoutRequests,
    AnArmCutOff,
    AnArmWithAnotherLoad,
    ThreeBesideTwenty,
    HalfTheBlocksMissing,
    BlocksOfOneArm,
    ClockGoesBack,
    ClockStandsStill,
    ClockOfOneArm,
    SameIds,
    NoTokens,
    NoFirstEvent,
    OneToken,
    NoDuration,
    Copies,
    NoHead,
    NoGpus,
    LiveSplit,
    LiveOfOneSession,
    OtherPlans,
    AllMeetTheSlo,
    NoneMeetsTheSlo,
}

use Oddity::*;

fn is_of(run: &RunRows, arm: &str) -> bool {
    run.head.as_ref().and_then(|head| head.arm.as_deref()) == Some(arm)
}

/// Runs of two or three arms that took turns, before anything is wrong with them.
fn orderly(rng: &mut Rng) -> Vec<RunRows> {
    let arms: &[&'static str] = if rng.bool() { &["a", "b"] } else { &["a", "b", "c"] };
    let offered = [Offered::Unlimited, Offered::Rate(5.0), Offered::Concurrency(3)][rng.usize(..3)];
    let (starts, linked) = (rng.u32(2..9), rng.bool());
    let effect = [1.0, 1.0, 1.5][rng.usize(..3)];
    let mut runs = Vec::new();
    for start in 0..starts {
        for turn in 0..arms.len() {
            let number = if start % 2 == 0 { turn } else { arms.len() - 1 - turn };
            let epoch = runs.len() as u32;
            let level = (0.05 * normal(rng)).exp() * if number == 1 { effect } else { 1.0 };
            let mut run = Run::of(arms[number], epoch, offered);
            (run.ttft_ms, run.e2e_ms, run.requests) = (100.0 * level, 400.0 * level, 24);
            (run.start, run.block) = (Some(epoch), linked.then_some(start));
            let mut rows = run.rows(rng);
            rows.head.as_mut().unwrap().began_ms = Some(1_000_000 + u64::from(epoch) * 60_000);
            runs.push(rows);
        }
    }
    runs
}

fn each_record(runs: &mut [RunRows], change: &mut dyn FnMut(&mut Record)) {
    runs.iter_mut().flat_map(|run| &mut run.records).for_each(change);
}

fn fail(record: &mut Record) {
    (record.outcome, record.status, record.first_event_us, record.first_token_us) =
        (Outcome::Status, Some(503), None, None);
    (record.last_event_us, record.output_tokens) = (None, 0);
}

fn set_times(record: &mut Record, ttft_us: u64, end_us: u64) {
    (record.first_event_us, record.first_token_us) = (Some(ttft_us), Some(ttft_us));
    (record.last_event_us, record.end_us) = (Some(end_us), end_us);
}

#[rustfmt::skip]
fn spoil(runs: &mut Vec<RunRows>, odd: Oddity, rng: &mut Rng) {
    let heads = |runs: &mut [RunRows], change: &mut dyn FnMut(u32, &mut forebay_lab::rows::row_file::RunHead)| {
        for (place, run) in (0..).zip(runs) {
            if let Some(head) = run.head.as_mut() { change(place, head); }
        }
    };
    match odd {
        AllOfOneArmFailed => runs.iter_mut().filter(|run| is_of(run, "b")).for_each(|run| run.records.iter_mut().for_each(fail)),
        EverythingFailed => each_record(runs, &mut fail),
        OneRequestARun => runs.iter_mut().for_each(|run| run.records.truncate(1)),
        NothingSpreads => each_record(runs, &mut |record| set_times(record, 100_000, 400_000)),
        TwoValues => each_record(runs, &mut |record| if rng.bool() { set_times(record, 100_000, 400_000) } else { set_times(record, 200_000, 500_000) }),
        HugeSpreads => each_record(runs, &mut |record| {
            let ttft = (100e3 * (6.0 * normal(rng)).exp()) as u64 + 1;
            set_times(record, ttft, ttft + 1 + (300e3 * (6.0 * normal(rng)).exp()) as u64);
        }),
        AnArmWithoutRequests => runs.iter_mut().filter(|run| is_of(run, "b")).for_each(|run| run.records.clear()),
        AnArmCutOff => runs.iter_mut().filter(|run| is_of(run, "b")).for_each(|run| run.end = None),
        AnArmWithAnotherLoad => heads(runs, &mut |_, head| if head.arm.as_deref() == Some("b") { head.load.offered = Offered::Rate(77.0) }),
        ThreeBesideTwenty => {
            let mut made: Vec<RunRows> = Vec::new();
            for place in 0..23_u32 {
                let arm = if place % 8 == 3 { "a" } else { "b" };
                let mut rows = Run { start: Some(place), requests: 24, ..Run::of(arm, place, Offered::Unlimited) }.rows(rng);
                rows.head.as_mut().unwrap().began_ms = Some(u64::from(place) * 1000);
                made.push(rows);
            }
            *runs = made;
        }
        HalfTheBlocksMissing => heads(runs, &mut |_, head| if rng.bool() { head.block = None }),
        BlocksOfOneArm => heads(runs, &mut |place, head| head.block = (head.arm.as_deref() == Some("a")).then_some(place)),
        ClockGoesBack => heads(runs, &mut |place, head| head.began_ms = Some(1_000_000 - u64::from(place) * 777 + rng.u64(..3) * 5000)),
        ClockStandsStill => heads(runs, &mut |_, head| head.began_ms = Some(5)),
        ClockOfOneArm => heads(runs, &mut |_, head| if head.arm.as_deref() == Some("a") { head.began_ms = None }),
        SameIds => each_record(runs, &mut |record| record.id = 7),
        NoTokens => each_record(runs, &mut |record| (record.output_tokens, record.prompt_tokens) = (0, 0)),
        NoFirstEvent => each_record(runs, &mut |record| (record.first_event_us, record.first_token_us, record.last_event_us) = (None, None, None)),
        OneToken => each_record(runs, &mut |record| record.output_tokens = 1),
        NoDuration => each_record(runs, &mut |record| { record.sent_us = 0; set_times(record, 0, 0); }),
        Copies => { let copies = runs.clone(); runs.extend(copies); }
        NoHead => runs.iter_mut().for_each(|run| (run.head, run.end) = (None, None)),
        NoGpus => heads(runs, &mut |_, head| head.gpus = None),
        LiveSplit | LiveOfOneSession => {
            for run in runs.iter_mut() { run.head.as_mut().unwrap().arm = None; }
            each_record(runs, &mut |record| {
                record.assigned = Some(["a", "b"][rng.usize(..2)].to_owned());
                record.session = Some(if odd == LiveSplit { format!("{:x}", rng.u32(..300)) } else { "one".to_owned() });
            });
        }
        OtherPlans => heads(runs, &mut |place, head| {
            head.planned_starts = (place % 3 > 0).then_some(3 + place % 2);
            head.planned_runs = (place % 5 > 2).then_some(place);
        }),
        AllMeetTheSlo => each_record(runs, &mut |record| set_times(record, 1000 + rng.u64(..50), 2000)),
        NoneMeetsTheSlo => each_record(runs, &mut |record| set_times(record, 9_000_000 + rng.u64(..50), 9_900_000)),
    }
}

/// Words of a report that are no words: what is not a number was printed.
fn no_number(said: &str) -> bool {
    said.split(|c: char| c.is_whitespace() || "(),;:*|%".contains(c))
        .any(|word| matches!(word, "NaN" | "inf" | "-inf" | "-0.00"))
}

fn holds(comparison: &Comparison) {
    let (winners, crossovers) = (check_pairs(comparison), check_crossovers(comparison));
    let said = text(comparison);
    assert_eq!(said.matches(" is better than ").count(), winners, "{said}");
    assert_eq!(said.matches(" is better ").count(), winners + crossovers, "{said}");
    assert_eq!(markdown(comparison).matches(" is better than ").count(), winners);
    assert!(!no_number(&said), "{said}");
    for pair in comparison.points.iter().flat_map(|point| &point.pairs) {
        for ratio in &pair.ratios {
            let ends = ratio.interval.map_or([1.0; 2], |ends| [ends.low, ends.high]);
            let chances = [ratio.p, ratio.p_t, ratio.p_rank, ratio.p_adjusted].map(|p| p.unwrap_or(0.5));
            assert!(
                ends.iter().chain([&ratio.ratio, &ratio.baseline, &ratio.arm]).all(|one| one.is_finite()),
                "{ratio:?}"
            );
            assert!(ends[0] <= ends[1] && chances.iter().all(|p| (0.0..=1.0).contains(p)), "{ratio:?}");
            assert!(ratio.detectable.is_none_or(|least| least >= 1.02), "{ratio:?}");
        }
        // A sentence that names a winner gives the table's own figures.
        if let Verdict::Winner { arm, ratio, interval, .. } = &pair.verdict {
            let first = &pair.ratios[0];
            let same = |one: f64, other: f64| (one.ln() - other.ln()).abs() < 1e-9;
            let turned = *arm == pair.baseline;
            let of = |value: f64| if turned { 1.0 / value } else { value };
            assert!(same(*ratio, of(first.ratio)), "{pair:?}");
            let ends = first.interval.unwrap();
            let (low, high) = if turned { (ends.high, ends.low) } else { (ends.low, ends.high) };
            assert!(same(interval.low, of(low)) && same(interval.high, of(high)), "{pair:?}");
        }
    }
    let json = serde_json::to_string(comparison).unwrap();
    assert!(!json.contains("NaN"), "{json}");
    html(comparison, &Made::default()).unwrap();
}

#[test]
fn odd_rows_make_no_report_that_contradicts_itself() {
    let mut rng = generator(42);
    let mut reports: BTreeMap<String, u32> = BTreeMap::new();
    let rounds = if full() { 20 } else { 4 };
    // Each by itself, and every two of them.
    for &first in ODDITIES {
        for &second in ODDITIES {
            for _ in 0..rounds {
                let mut runs = orderly(&mut rng);
                spoil(&mut runs, first, &mut rng);
                let second_too = first != second && !runs.iter().any(|run| run.head.is_none());
                if second_too {
                    spoil(&mut runs, second, &mut rng);
                }
                let slo = rng.bool().then(|| "ttft=500ms,tpot=50ms".parse().unwrap());
                let Ok(comparison) = compare(&runs, &Options { slo, ..Options::default() }) else { continue };
                let found = std::panic::catch_unwind(|| holds(&comparison));
                assert!(found.is_ok(), "{first:?} and {second:?}");
                *reports.entry(format!("{first:?}")).or_default() += 1;
            }
        }
    }
    println!("{reports:?}");
    // What was left out of a report made no report.
    assert!(reports.len() >= ODDITIES.len() - 2 && reports.values().sum::<u32>() > 1000, "{reports:?}");
}

#[test]
fn rows_that_tell_too_little_name_no_winner() {
    let mut rng = generator(43);
    for odd in [AllOfOneArmFailed, EverythingFailed, ClockStandsStill, NoHead, LiveOfOneSession, AnArmWithoutRequests] {
        for _ in 0..20 {
            let mut runs = orderly(&mut rng);
            spoil(&mut runs, odd, &mut rng);
            let Ok(comparison) = compare(&runs, &Options::default()) else { continue };
            let pairs = || comparison.points.iter().flat_map(|point| &point.pairs);
            // The third arm is as orderly as the first.
            let of_b = [AllOfOneArmFailed, AnArmWithoutRequests].contains(&odd);
            let of_it = pairs().filter(|pair| !of_b || pair.arm == "b");
            for pair in of_it {
                assert!(matches!(pair.verdict, Verdict::NotJudged { .. }), "{odd:?}: {}", text(&comparison));
            }
        }
    }
}

#[test]
fn values_that_do_not_spread_are_no_difference_and_no_winner() {
    let mut rng = generator(44);
    for _ in 0..20 {
        let mut runs = orderly(&mut rng);
        spoil(&mut runs, NothingSpreads, &mut rng);
        let comparison = compare(&runs, &Options::default()).unwrap();
        for pair in comparison.points.iter().flat_map(|point| &point.pairs) {
            let seen = match &pair.verdict {
                Verdict::NoDifference { ratio, .. } => (ratio - 1.0).abs() < 1e-9,
                Verdict::NotJudged { because } => !matches!(because, Unjudged::FailedCheck { .. }),
                Verdict::Winner { .. } => false,
            };
            assert!(seen, "{}", text(&comparison));
        }
    }
}

#[test]
fn few_of_many_starts_are_called_few_whichever_arm_has_them() {
    let mut rng = generator(45);
    let mut runs = orderly(&mut rng);
    spoil(&mut runs, ThreeBesideTwenty, &mut rng);
    for baseline in ["a", "b"] {
        let options = Options { baseline: Some(baseline.to_owned()), ..Options::default() };
        let said = text(&compare(&runs, &options).unwrap());
        assert!(said.contains("3 starts beside 20 are too few"), "{said}");
    }
}
