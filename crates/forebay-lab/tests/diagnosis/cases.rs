//! The runs that fooled the diagnosis once: each kind by a run that has it, and by one that resembles it and has it not.

use forebay_lab::diagnosis::{Cause, Diagnosis, Evidence, diagnose};
use forebay_lab::rows::row_file::{self, Offered, RunRows};

use super::engine::run;
use super::setup::{Failing, KINDS, Scrapes, Setup};
use super::truth::wrong;

fn of(rows: &RunRows) -> Diagnosis {
    diagnose(&Evidence::of(rows, None))
}

fn said(setup: &Setup) -> Diagnosis {
    of(&run(setup).rows)
}

/// Asserts that the cause is named, and that twice of it gains.
fn named(setup: &Setup, cause: Cause) -> Diagnosis {
    let found = said(setup);
    assert_eq!(found.cause, cause, "{found:#?}");
    assert_eq!(wrong(setup, cause), None, "{found:#?}");
    found
}

fn recorded(text: &str) -> Vec<Diagnosis> {
    row_file::read(text.as_bytes()).unwrap().iter().map(of).collect()
}

/// A server that takes about 11 requests a second, by its cap of 32.
fn capped() -> Setup {
    Setup { max_num_seqs: 32, prompt: 50, answer: 200, requests: 600, ..Setup::usual() }
}

#[test]
fn an_overload_is_no_keeping_up() {
    for rate in [13.0, 16.0, 25.0] {
        named(&Setup { offered: Offered::Rate(rate), ..capped() }, Cause::CapOnRunning);
    }
    // Little above what the server takes, twice of anything gains little: whatever is said, it is not that it kept up.
    let little = said(&Setup { offered: Offered::Rate(11.4), ..capped() });
    assert_ne!(little.cause, Cause::Arrival, "{little:#?}");
}

#[test]
fn a_server_that_keeps_up_is_told_so_only_where_it_would_take_more() {
    named(&Setup { offered: Offered::Rate(5.0), ..capped() }, Cause::Arrival);
    let near = said(&Setup { offered: Offered::Rate(10.0), requests: 900, ..capped() });
    assert_ne!(near.cause, Cause::Arrival, "twice that load gains a tenth: {near:#?}");
}

#[test]
fn a_run_with_failures_did_not_keep_up() {
    for failing in [Failing::Errors(0.02), Failing::Errors(0.3), Failing::Gone(20.0, 60.0)] {
        let found = said(&Setup { servers: 2, offered: Offered::Rate(5.0), failing, ..capped() });
        assert_ne!(found.cause, Cause::Arrival, "{found:#?}");
    }
    let many = said(&Setup { offered: Offered::Concurrency(64), failing: Failing::Errors(0.2), ..capped() });
    assert!(many.cause == Cause::Undecided && many.sentence.contains("of the requests failed"), "{many:#?}");
}

#[test]
fn a_closed_loop_is_a_load_and_its_plateau_no_cap() {
    let closed = |most| Setup { offered: Offered::Concurrency(most), ..Setup::usual() };
    for most in [4, 16, 64, 100] {
        let found = named(&closed(most), Cause::Concurrency);
        assert!(found.sentence.contains(&format!("kept {most} requests open")), "{}", found.sentence);
        // Short answers: several requests wait for the next step at any time.
        let short = Setup { answer: 16, prompt: 40, requests: 1500, ..closed(most) };
        let found = said(&short);
        assert!(found.candidates.contains(&Cause::Concurrency) || found.cause == Cause::Prefill, "{found:#?}");
        assert!(found.cause == Cause::Undecided || wrong(&short, found.cause).is_none(), "{found:#?}");
        // Where nobody told the cap, there may be one right above the concurrency.
        let untold = said(&Setup { tells_cap: false, ..closed(most) });
        assert!(untold.candidates.contains(&Cause::Concurrency), "{untold:#?}");
        assert_ne!(untold.cause, Cause::CapOnRunning, "{untold:#?}");
    }
    named(&Setup { max_num_seqs: 24, ..closed(96) }, Cause::CapOnRunning);
}

#[test]
fn prompts_that_are_cached_cost_nothing() {
    let long = Setup { prompt: 2000, answer: 60, blocks: 60_000, offered: Offered::Concurrency(24), ..Setup::usual() };
    named(&long, Cause::Prefill);
    for tells_cached in [true, false] {
        let found = said(&Setup { shared: 1952, tells_cached, ..long.clone() });
        assert_ne!(found.cause, Cause::Prefill, "{found:#?}");
        assert_eq!(found.cause, Cause::Concurrency, "{found:#?}");
    }
}

#[test]
fn a_slow_api_server_is_not_a_slow_client() {
    let many = Setup { step_us: 8000.0, ..Setup::usual() };
    for offered in [Offered::Unlimited, Offered::Concurrency(128)] {
        for event_us in [350.0, 700.0] {
            let found = named(&Setup { event_us, offered, ..many.clone() }, Cause::HttpSide);
            assert!(found.sentence.contains("HTTP side"), "{}", found.sentence);
            named(&Setup { client_us: event_us, offered, ..many.clone() }, Cause::SlowClient);
        }
    }
}

#[test]
fn a_network_s_round_trip_is_not_prefill() {
    for round_trip_us in [50e3, 150e3, 400e3] {
        for most in [2, 8, 32] {
            let offered = Offered::Concurrency(most);
            named(&Setup { round_trip_us, answer: 40, offered, ..Setup::usual() }, Cause::Concurrency);
        }
        let far = said(&Setup { round_trip_us, ..Setup::usual() });
        assert_ne!(far.cause, Cause::Prefill, "{far:#?}");
    }
}

#[test]
fn step_time_has_evidence_of_its_own() {
    let roomy = Setup { max_num_seqs: 512, prompt: 40, ..Setup::usual() };
    let found = named(&roomy, Cause::StepTime);
    assert!(found.sentence.contains("steps in half the time"), "{}", found.sentence);
    // Something costs time that is neither a step, nor a prompt, nor a wait: a replay does not give the run, and nothing is named.
    let mut rows = run(&roomy).rows;
    for record in &mut rows.records {
        record.sent_us += u64::from(record.id) * 20_000;
    }
    let found = of(&rows);
    assert_ne!(found.cause, Cause::StepTime, "{found:#?}");
}

#[test]
fn without_metrics_or_with_few_it_is_unsure_and_says_so() {
    let mut rng = fastrand::Rng::with_seed(3);
    for kind in KINDS {
        for _ in 0..30 {
            let setup = Setup::draw(kind, &mut rng);
            for scrapes in [Scrapes::None, Scrapes::Few(0.5)] {
                let found = said(&Setup { scrapes, ..setup.clone() });
                assert_eq!(found.cause, Cause::Undecided, "{found:#?}");
                assert!(found.sentence.contains("not sure"), "{}", found.sentence);
            }
        }
    }
}

#[test]
fn two_recorded_runs_are_told() {
    for found in recorded(include_str!("rows/closed_loop_32.jsonl")) {
        assert_eq!(found.cause, Cause::Concurrency, "{found:#?}");
    }
    for found in recorded(include_str!("rows/overload_1.15.jsonl")) {
        assert_ne!(found.cause, Cause::Arrival, "{found:#?}");
        assert!(found.candidates.contains(&Cause::CapOnRunning), "{found:#?}");
    }
}
