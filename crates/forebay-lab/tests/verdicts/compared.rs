//! What is compared at all: figures that follow the load, lateness of the client, loads and prompts that are not the same.

use fastrand::Rng;
use forebay_lab::compare::model::{Comparison, Gravity, Throughput};
use forebay_lab::compare::report::text::text;
use forebay_lab::compare::verdict::{Unjudged, Verdict};
use forebay_lab::compare::{Options, compare};
use forebay_lab::rows::row_file::{Load, Offered, RunEnd, RunRows};
use forebay_lab::rows::slo::Slo;

use crate::rates::generator;
use crate::rows::{Run, at, because, verdict};

#[test]
fn below_saturation_no_throughput_is_compared() {
    let mut rng = generator(27);
    let run = |epoch: u32, growth: f64, rng: &mut Rng| {
        let arm = if epoch.is_multiple_of(2) { "a" } else { "b" };
        let mut rows = Run { requests: 200, ..Run::of(arm, epoch, Offered::Rate(10.0)) }.rows(rng);
        for record in &mut rows.records {
            let late = (record.sent_us as f64 * growth) as u64;
            record.first_event_us = record.first_event_us.map(|us| us + late);
            record.last_event_us = record.last_event_us.map(|us| us + late);
            record.end_us += late;
        }
        rows
    };
    let mut of = |growth: f64| {
        let runs: Vec<RunRows> = (0..10).map(|epoch| run(epoch, growth, &mut rng)).collect();
        compare(&runs, &Options { prices: [("a".to_owned(), 4.0)].into(), ..Options::default() }).unwrap()
    };
    let kept = of(0.0);
    assert!(kept.points[0].cells.iter().all(|cell| cell.throughput == Throughput::OfTheLoad));
    let ratios = |comparison: &Comparison| {
        comparison.points[0].pairs[0].ratios.iter().filter(|one| one.figure.follows_load()).count()
    };
    assert_eq!(ratios(&kept), 0);
    assert!(kept.points[0].cells[0].figures.iter().all(|one| !one.figure.follows_load()));
    assert!(text(&kept).contains("Throughput follows the load here") && text(&kept).contains("the load's"));
    let behind = of(0.2);
    assert!(ratios(&behind) > 0 && !text(&behind).contains("follows the load"), "{}", text(&behind));
}

#[test]
fn a_lateness_is_judged_by_what_it_could_change() {
    let mut rng = generator(28);
    let mut of = |ttft_ms: f64, slo: Option<Slo>| {
        let run = |epoch: u32, rng: &mut Rng| {
            let arm = if epoch.is_multiple_of(2) { "a" } else { "b" };
            let mut rows = Run { ttft_ms, ..Run::of(arm, epoch, Offered::Rate(10.0)) }.rows(rng);
            rows.end = Some(RunEnd { lag_p99_us: 1500 });
            rows
        };
        let runs: Vec<RunRows> = (0..10).map(|epoch| run(epoch, &mut rng)).collect();
        let comparison = compare(&runs, &Options { slo, ..Options::default() }).unwrap();
        let gravity = comparison.warnings.iter().find(|warning| warning.check == "lag").unwrap().gravity;
        (gravity, matches!(verdict(&comparison), Verdict::NotJudged { .. }))
    };
    assert_eq!(of(600.0, None), (Gravity::Note, false));
    assert_eq!(of(20.0, None), (Gravity::FailedCheck, true));
    // Misses of a limit change only by requests near it. A limit of TPOT is one of all of an answer's gaps together.
    let slo = |text: &str| Some(text.parse::<Slo>().unwrap());
    assert_eq!(of(20.0, slo("ttft=500ms,tpot=20ms")), (Gravity::Note, false));
    assert_eq!(of(20.0, slo("ttft=25ms")), (Gravity::FailedCheck, true));
    assert_eq!(of(600.0, slo("ttft=50ms,tpot=50ms")), (Gravity::FailedCheck, true));
}

#[test]
fn a_load_is_all_that_makes_it_one() {
    let mut rng = generator(29);
    let plain = at(Offered::Rate(10.0));
    for other in [
        Load { burstiness: Some(0.3), ..plain.clone() },
        Load { max_concurrency: Some(4), ..plain.clone() },
        Load { output_len: Some(50), ..plain.clone() },
        Load { dataset: Some("sharegpt".to_owned()), ..plain.clone() },
    ] {
        let run = |epoch: u32| {
            let (arm, load) = if epoch.is_multiple_of(2) { ("a", &plain) } else { ("b", &other) };
            Run { load: load.clone(), ..Run::of(arm, epoch, Offered::Rate(10.0)) }
        };
        let runs: Vec<RunRows> = (0..6).map(|epoch| run(epoch).rows(&mut rng)).collect();
        assert!(compare(&runs, &Options::default()).is_err(), "{other:?}");
    }
    // The same seed twice on one start: the servers knew the prompts.
    let mut runs: Vec<RunRows> = Vec::new();
    for epoch in 0..12_u32 {
        let arm = if epoch.is_multiple_of(2) { "a" } else { "b" };
        let start = Some(2 * (epoch / 4) + epoch % 2);
        let mut rows = Run { start, ..Run::of(arm, epoch, Offered::Rate(10.0)) }.rows(&mut rng);
        rows.head.as_mut().unwrap().load.seed = u64::from(epoch / 4);
        runs.push(rows);
    }
    let comparison = compare(&runs, &Options::default()).unwrap();
    assert!(comparison.warnings.iter().any(|warning| warning.check == "seed"), "{:?}", comparison.warnings);
}

#[test]
fn arms_with_other_models_or_prompts_are_not_compared() {
    let mut rng = generator(30);
    let of = |change: &dyn Fn(&mut RunRows), rng: &mut Rng| {
        let run = |epoch: u32, rng: &mut Rng| {
            let arm = if epoch.is_multiple_of(2) { "a" } else { "b" };
            let mut rows = Run::of(arm, epoch, Offered::Rate(10.0)).rows(rng);
            if arm == "b" {
                change(&mut rows);
            }
            rows
        };
        let runs: Vec<RunRows> = (0..10).map(|epoch| run(epoch, rng)).collect();
        because(&compare(&runs, &Options::default()).unwrap())
    };
    let model = of(&|rows| rows.head.as_mut().unwrap().model = "other".to_owned(), &mut rng);
    assert_eq!(model, Unjudged::FailedCheck { check: "models" });
    let prompts = of(&|rows| rows.records.iter_mut().for_each(|record| record.prompt_tokens = 150), &mut rng);
    assert_eq!(prompts, Unjudged::FailedCheck { check: "balance" });
    let fewer = of(&|rows| rows.records.truncate(30), &mut rng);
    assert_eq!(fewer, Unjudged::FailedCheck { check: "same_load" });
}
