//! A report contradicts no table of its own, whatever the rows.

use fastrand::Rng;
use forebay_lab::compare::model::{Comparison, Gravity, Throughput};
use forebay_lab::compare::report::html::{Made, html};
use forebay_lab::compare::report::text::text;
use forebay_lab::compare::verdict::{Crossing, LoadAxis, Ratio, Verdict};
use forebay_lab::compare::{Options, compare};
use forebay_lab::rows::row_file::{Offered, RunEnd, RunRows};

use crate::made::normal;
use crate::rates::{full, generator};
use crate::rows::Run;

/// An experiment of any kind: loads, arms, starts, failures, differences.
fn anything(rng: &mut Rng) -> Vec<RunRows> {
    let arms: &[&'static str] = if rng.bool() { &["a", "b"] } else { &["a", "b", "c"] };
    let loads: Vec<Offered> = match rng.u8(0..4) {
        0 => vec![Offered::Unlimited],
        1 => vec![Offered::Rate(5.0)],
        2 => vec![Offered::Rate(2.0), Offered::Rate(5.0), Offered::Rate(20.0)],
        _ => vec![Offered::Concurrency(2), Offered::Concurrency(8)],
    };
    let (starts, each, told) = (rng.u32(1..7), rng.u32(1..3), rng.u8(0..4) > 0);
    let (together, blocks, alternate) = (rng.bool(), rng.bool(), rng.u8(0..5) > 0);
    let effects: Vec<f64> = (0..3).map(|_| (0.2 * normal(rng)).exp()).collect();
    let tilt: Vec<f64> = (0..3).map(|_| 0.2 * normal(rng)).collect();
    let (spread, fails, late) = (0.1 * rng.f64(), rng.u8(0..5) == 0, if rng.u8(0..4) == 0 { 4000 } else { 90 });
    let planned = (rng.u8(0..3) == 0).then(|| rng.u32(3..6));
    let mut rows = Vec::new();
    for start in 0..starts {
        for turn in 0..each {
            for (place, load) in loads.iter().enumerate() {
                for (number, arm) in arms.iter().enumerate() {
                    let order = if alternate { rows.len() as u32 } else { number as u32 * 1000 + rows.len() as u32 };
                    let own = if together { start } else { start * 10 + number as u32 };
                    let level = effects[number] * (tilt[number] * place as f64 + spread * normal(rng)).exp();
                    let mut made = Run::of(arm, order, *load);
                    (made.start, made.block) = (told.then_some(own), blocks.then_some(start * each + turn));
                    (made.ttft_ms, made.e2e_ms) = (100.0 * level, 400.0 * level);
                    (made.requests, made.planned) = (30, planned);
                    made.fails = if fails && number == 1 { 0.3 } else { 0.0 };
                    let mut run = made.rows(rng);
                    run.end = Some(RunEnd { lag_p99_us: late });
                    rows.push(run);
                }
            }
        }
    }
    rows
}

/// The better arm by a line of a table, if it shows one.
fn better<'a>(ratio: &Ratio, names: (&'a str, &'a str)) -> Option<&'a str> {
    let arm = (ratio.ratio > 1.0) == ratio.figure.more_is_better();
    ratio.shown.then_some(if arm { names.1 } else { names.0 })
}

pub(crate) fn check_pairs(comparison: &Comparison) -> usize {
    let mut named = 0;
    for point in &comparison.points {
        for pair in &point.pairs {
            let names = (pair.baseline.as_str(), pair.arm.as_str());
            for ratio in &pair.ratios {
                let interval = ratio.interval;
                assert!(interval.is_none_or(|ends| ends.low <= ratio.ratio && ratio.ratio <= ends.high), "{ratio:?}");
                if ratio.shown {
                    let ends = interval.unwrap();
                    assert!(ends.low > 1.0 || ends.high < 1.0, "{ratio:?}");
                    assert!(ratio.p_adjusted.unwrap() < 0.05 && ratio.detectable.is_some(), "{ratio:?}");
                    assert_eq!(ratio.arm > ratio.baseline, ratio.ratio > 1.0, "{ratio:?}");
                }
                let own = point.cells.iter().all(|cell| cell.throughput == Throughput::OfTheArm);
                assert!(own || point.cells.len() > 2 || !ratio.figure.follows_load(), "{ratio:?}");
            }
            let first = pair.ratios.first().filter(|ratio| ratio.primary);
            match &pair.verdict {
                Verdict::Winner { arm, .. } => {
                    assert_eq!(better(first.unwrap(), names), Some(arm.as_str()));
                    named += 1;
                }
                Verdict::NoDifference { .. } => assert!(!first.unwrap().shown),
                Verdict::NotJudged { .. } => assert!(pair.ratios.iter().all(|ratio| !ratio.shown)),
            }
        }
    }
    named
}

pub(crate) fn check_crossovers(comparison: &Comparison) -> usize {
    let mut named = 0;
    for crossover in &comparison.crossovers {
        let names = (crossover.baseline.as_str(), crossover.arm.as_str());
        let shown: Vec<(f64, &str)> = comparison
            .points
            .iter()
            .filter_map(|point| match (point.offered?, crossover.axis) {
                (Offered::Rate(rate), LoadAxis::Rate) => Some((rate, point)),
                (Offered::Concurrency(count), LoadAxis::Concurrency) => Some((f64::from(count), point)),
                _ => None,
            })
            .flat_map(|(load, point)| point.pairs.iter().map(move |pair| (load, pair)))
            .filter(|(_, pair)| pair.arm == crossover.arm && pair.baseline == crossover.baseline)
            .flat_map(|(load, pair)| pair.ratios.iter().map(move |ratio| (load, ratio)))
            .filter(|(_, ratio)| ratio.figure == crossover.figure)
            .filter_map(|(load, ratio)| Some((load, better(ratio, names)?)))
            .collect();
        match &crossover.found {
            Crossing::At { below, above, load, low, high } => {
                named += 1;
                assert!(shown.iter().any(|(at, arm)| at < load && arm == below), "{crossover:?} {shown:?}");
                assert!(shown.iter().any(|(at, arm)| at > load && arm == above), "{crossover:?} {shown:?}");
                assert!(low.is_none_or(|low| low <= *load) && high.is_none_or(|high| high >= *load), "{crossover:?}");
            }
            Crossing::Never { better, from, to } => {
                named += 1;
                assert!(!shown.is_empty() && shown.iter().all(|(at, arm)| from <= at && at <= to && arm == better));
            }
            Crossing::Unshown => assert_eq!(shown, []),
        }
    }
    named
}

#[test]
fn no_sentence_contradicts_its_table() {
    let mut rng = generator(41);
    let (mut reports, mut named, mut crossed) = (0, 0, 0);
    for round in 0..if full() { 5000 } else { 500 } {
        let Ok(comparison) = compare(&anything(&mut rng), &Options::default()) else { continue };
        let (winners, crossovers) = (check_pairs(&comparison), check_crossovers(&comparison));
        let said = text(&comparison);
        assert_eq!(said.matches(" is better than ").count(), winners, "{said}");
        assert_eq!(
            said.matches(" is better at ").count()
                + said.matches(" is better wherever ").count()
                + said.matches(" is better below").count(),
            crossovers,
            "{said}"
        );
        let failed = comparison.warnings.iter().filter(|warning| warning.gravity == Gravity::FailedCheck).count();
        assert_eq!(said.matches("FAILED CHECK").count(), failed);
        assert!(failed == 0 || said.contains("FAILED CHECK"), "{said}");
        if round % 25 == 0 {
            let page = html(&comparison, &Made::default()).unwrap();
            assert_eq!(page.matches(" is better than ").count(), winners);
        }
        (reports, named, crossed) = (reports + 1, named + winners, crossed + crossovers);
    }
    println!("{reports} reports with {named} winners and {crossed} lines of crossovers");
    assert!(reports > 300 && named > 20 && crossed > 20, "{reports} {named} {crossed}");
}
