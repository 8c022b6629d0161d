//! Facts that this module must hold.

use super::*;
use crate::rows::record;
use crate::rows::row_file::{Load, Offered, RunEnd, RunHead, RunRows, Sample};
use crate::rows::summary::{Latency, Summary};

const S1: [f64; 14] =
    [300.0, 48.35, 30000.0, 161_719.0, 6.21, 620.52, 3344.91, 3965.41, 1818.40, 34395.81, 48.38, 91.12, 20.70, 10.97];
const S2: [f64; 14] =
    [300.0, 35.08, 30000.0, 162_191.0, 8.55, 855.28, 4623.98, 5479.26, 2226.99, 3921.81, 54.67, 109.14, 18.29, 9.16];

#[test]
fn a_contrast_is_what_runs_at_once_over_time_per_token() {
    let arms = [S1, S2].map(|rows| Evidence::of_table("x", Some(Offered::Unlimited), &rows));
    let found = &contrast(&arms)[0];
    assert!((found.ratio - found.at_once / found.per_token).abs() < 1e-9);
    assert!(found.at_once > 1.5 && found.per_token > 1.1 && found.sentence.contains("room"), "{found:?}");
    assert!(contrast(&[]).is_empty());
}

#[test]
fn nothing_known_is_undecided() {
    let found = diagnose(&Evidence::default());
    assert_eq!(found.cause, Cause::Undecided);
    assert!(agreed(&[]).is_none());
}

/// A real vLLM 0.26.0 on one H200, Qwen2.5-7B's shape, 300 requests at once, 100 in, 600 out: output tokens/s, median and P99
/// TTFT and mean TPOT in ms, as measured.
fn h200(rate: f64, median_ttft: f64, p99_ttft: f64, mean_tpot: f64) -> Diagnosis {
    let ttft_ms = Latency { p50: Some(median_ttft), p99: Some(p99_ttft), ..Latency::default() };
    let tpot_ms = Latency { mean: Some(mean_tpot), ..Latency::default() };
    let figures = Summary {
        requests: 300,
        duration_s: 180_000.0 / rate,
        input_tokens: 30_000,
        output_tokens: 180_000,
        ttft_ms,
        tpot_ms,
        ..Summary::default()
    };
    let offered = Some(Offered::Unlimited);
    diagnose(&Evidence { offered, figures, output_len: Some(600), lag_p99_ms: Some(0.5), ..Evidence::default() })
}

#[test]
fn a_real_server_with_room_one_with_little_memory_and_one_with_a_cap_are_told_apart() {
    let roomy = h200(21_918.0, 909.0, 1000.0, 12.3);
    assert_eq!((roomy.cause, roomy.candidates.as_slice()), (Cause::Undecided, &[Cause::StepTime][..]), "{roomy:#?}");
    assert!(roomy.sentence.contains("not sure, because the servers' metrics were not scraped"), "{}", roomy.sentence);
    let (memory, cap) = (h200(8331.0, 791.0, 15_103.0, 14.8), h200(7063.0, 11_555.0, 21_420.0, 6.8));
    assert_eq!(memory.candidates[0], Cause::KvRoom, "{memory:#?}");
    assert_eq!(cap.candidates, [Cause::CapOnRunning, Cause::KvRoom], "{cap:#?}");
    assert!(cap.sentence.contains("about 48 of 300 sequences, in waves"), "{}", cap.sentence);
}

/// A run at one request a second of which each takes two seconds.
fn at_a_rate() -> RunRows {
    let records = (0..100)
        .map(|id| record::Record { sent_us: u64::from(id) * 1_000_000, end_us: 2_000_000, ..record::tests::record(id) })
        .collect();
    let load = Load {
        offered: Offered::Rate(1.0),
        num_prompts: 100,
        dataset: None,
        input_len: None,
        output_len: None,
        seed: 0,
        ..Load::default()
    };
    let head = RunHead {
        arm: Some("a".to_owned()),
        epoch: 0,
        block: None,
        start: None,
        load,
        model: "m".to_owned(),
        gpus: None,
        replicas: None,
        max_num_seqs: None,
        simulated: false,
        ..RunHead::default()
    };
    RunRows { head: Some(head), records, samples: Vec::new(), end: Some(RunEnd { lag_p99_us: 100 }) }
}

#[test]
fn an_arm_that_is_done_soon_after_the_last_arrival_kept_up() {
    let found = diagnose(&Evidence::of(&at_a_rate(), None));
    assert_eq!((found.cause, found.candidates.as_slice()), (Cause::Undecided, &[Cause::Arrival][..]));
    assert!(found.would_tell.iter().any(|line| line.contains("scrapes them during the run")), "{:?}", found.would_tell);
    assert!(found.sentence.contains("1.00 requests/s"), "{}", found.sentence);
}

#[test]
fn a_generator_that_was_later_than_a_token_takes_is_the_cause() {
    let late = RunRows { end: Some(RunEnd { lag_p99_us: 90_000 }), ..at_a_rate() };
    let found = diagnose(&Evidence::of(&late, None));
    assert_eq!(
        (found.cause, found.candidates.as_slice()),
        (Cause::Undecided, &[Cause::SlowClient][..]),
        "TPOT is 20 ms"
    );
}

#[test]
fn a_batch_of_one_size_before_a_queue_is_a_cap_that_nobody_told() {
    let look = |at: u64| Sample {
        backend: "b".to_owned(),
        at_us: at * 1_000_000,
        running: Some(8.0),
        waiting: Some(20.0),
        kv_usage: Some(0.3),
        steps: Some(at as f64 * 10.0),
        ..Sample::default()
    };
    let looks: Vec<Sample> = (0..10).map(look).collect();
    let servers = Servers::of(&looks.iter().collect::<Vec<_>>(), None, 100.0, 200.0).unwrap();
    assert!(servers.at_cap > 0.99 && servers.running_full == Some(8.0), "{servers:?}");
    let full: Vec<Sample> = looks.into_iter().map(|look| Sample { kv_usage: Some(0.99), ..look }).collect();
    let servers = Servers::of(&full.iter().collect::<Vec<_>>(), Some(64), 100.0, 200.0).unwrap();
    assert!(servers.kv_full > 0.99 && servers.at_cap == 0.0, "{servers:?}");
}

#[test]
fn runs_that_do_not_agree_are_undecided_and_say_so() {
    let (a, b) = (diagnose(&Evidence::of(&at_a_rate(), None)), h200(21_918.0, 909.0, 1000.0, 12.3));
    assert_eq!(agreed(&[a.clone(), a.clone()]).unwrap(), a);
    let both = agreed(&[a, b]).unwrap();
    assert_eq!((both.cause, both.candidates), (Cause::Undecided, vec![Cause::StepTime, Cause::Arrival]));
    assert!(both.sentence.contains("perhaps step time in 1"), "{}", both.sentence);
}
