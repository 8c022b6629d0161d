//! Facts of the counters and estimators: one for each correction that the formula was given on review.

use std::sync::Mutex;

use super::lease::LeaseRequest;
use super::*;
use forebay_core::routing::candidate::{Candidate, Foreign, Head};
use forebay_core::routing::cost::{self, Shape};
use forebay_core::routing::estimate::{GAP_PRIOR, TTFT_PRIOR};
use forebay_core::units::BackendId;
use proptest::prelude::*;

const STALE: Duration = Duration::from_secs(3);

fn at(ms: u64) -> Time {
    Time::from_micros(1_000_000_000 + ms * 1000)
}

/// The table of a pool of one backend.
#[derive(Debug)]
struct OneLoad(Mutex<(LoadState, Index)>);

impl LoadTable for OneLoad {
    fn with(&self, _: usize, act: &mut dyn FnMut(&mut LoadState, Pace)) {
        act(&mut self.0.lock().unwrap().0, Pace::default());
    }

    fn change(&self, slot: usize, act: &mut dyn FnMut(&mut LoadState, Pace)) {
        self.with(slot, act);
    }

    fn with_cache(&self, _: usize, act: &mut dyn FnMut(&mut LoadState, &mut Index)) {
        let (state, cache) = &mut *self.0.lock().unwrap();
        act(state, cache);
    }

    fn give_back(&self, _: usize) {}
}

fn load_of(speed: f64) -> Load {
    Load::new(Arc::new(OneLoad(Mutex::new((LoadState::new(speed, STALE), Index::default())))), 0)
}

fn load() -> Load {
    load_of(1.0)
}

impl Load {
    fn enter(&self, entry: LeaseRequest, now: Time) -> Lease {
        self.read(|state, pace| state.enter(entry, now, pace.lived(now)))
    }

    fn row(&self, id: BackendId, member: u16, mean_prompt: f64, now: Time) -> Candidate {
        self.read(|state, pace| state.row(id, member, mean_prompt, now, pace.lived(now)))
    }
}

fn entry(kind: Kind, tokens: u32) -> LeaseRequest {
    let sequences = u32::from(kind != Kind::Light);
    let tokens = if kind == Kind::Light { 0 } else { tokens };
    LeaseRequest {
        kind,
        sequences,
        tokens,
        prompt: tokens,
        claimed: 0,
        depth: 0.0,
        raw: 0.1,
        turn: 1,
        oversized: false,
    }
}

fn row(load: &Load, now: Time) -> Candidate {
    load.row(BackendId(0), 0, 500.0, now)
}

fn k(load: &Load, now: Time) -> f64 {
    row(load, now).ttft.ratio(1.0, TTFT_PRIOR)
}

fn v(load: &Load, now: Time) -> f64 {
    row(load, now).gap.ratio(1.0, GAP_PRIOR)
}

fn scraped(running: f64, waiting: f64) -> Sample {
    Sample { running: Some(running), waiting: Some(waiting), ..Sample::default() }
}

#[test]
fn a_stream_moves_from_prefill_to_decode_and_gives_back_what_it_took() {
    let load = load();
    let mut lease = load.enter(LeaseRequest { sequences: 4, ..entry(Kind::Stream, 300) }, at(0));
    let before = row(&load, at(0));
    assert_eq!((before.prefilling, before.decoding, before.queued_tokens, before.kv_tokens), (4, 0, 300, 300));
    load.first_token(&mut lease, at(50));
    load.first_token(&mut lease, at(60));
    load.event(&mut lease, at(70), false);
    let during = row(&load, at(70));
    assert_eq!((during.prefilling, during.decoding, during.queued_tokens, during.kv_tokens), (0, 4, 0, 301));
    load.end(&lease);
    let after = row(&load, at(80));
    assert_eq!((after.in_flight(), after.queued_tokens, after.kv_tokens), (0, 0, 0));
    assert_eq!(load.view(at(80)).open_attempts, 0);
}

#[test]
fn prompt_tokens_that_are_cached_take_no_more_of_the_kv_cache() {
    let load = load();
    let mut lease = load.enter(LeaseRequest { tokens: 100, claimed: 200, ..entry(Kind::Stream, 300) }, at(0));
    assert_eq!(row(&load, at(0)).kv_tokens, 100);
    load.first_token(&mut lease, at(50));
    load.event(&mut lease, at(60), false);
    assert_eq!((row(&load, at(60)).kv_tokens, load.view(at(60)).generated_tokens), (101, 1));
    load.end(&lease);
    assert_eq!((row(&load, at(70)).kv_tokens, load.view(at(70)).generated_tokens), (0, 1));
}

#[test]
fn the_ratio_compares_ttft_from_dispatch_with_what_was_expected_then() {
    let load = load();
    let mut lease = load.enter(LeaseRequest { raw: 0.2, ..entry(Kind::Stream, 300) }, at(0));
    load.first_token(&mut lease, at(600));
    assert!((row(&load, at(600)).ttft.ratio(1.0, 1.0) - (0.6 + 1.0) / (0.2 + 1.0)).abs() < 1e-9);
    assert!(k(&load, at(30_000)) < k(&load, at(600)), "decayed on read");
    load.end(&lease);
}

#[test]
fn a_unary_request_keeps_its_prefill_to_the_end_and_measures_nothing() {
    let load = load();
    let mut lease = load.enter(entry(Kind::Unary, 300), at(0));
    load.first_token(&mut lease, at(100));
    load.event(&mut lease, at(200), false);
    assert_eq!((row(&load, at(300)).prefilling, row(&load, at(300)).queued_tokens), (1, 300));
    load.succeed(&lease, at(5000));
    load.end(&lease);
    assert_eq!((k(&load, at(5000)), v(&load, at(5000))), (1.0, 1.0));
    assert!(row(&load, at(5000)).done_per_second > 0.0);
}

#[test]
fn the_duration_of_a_request_without_decoding_is_measured() {
    let load = load();
    let lease = load.enter(entry(Kind::NoDecode, 300), at(0));
    load.succeed(&lease, at(900));
    load.end(&lease);
    assert!(k(&load, at(900)) > 1.5);
}

#[test]
fn what_never_reaches_the_engine_is_open_but_neither_prompt_nor_sequence() {
    let load = load();
    let lease = load.enter(entry(Kind::Light, 0), at(0));
    let (row, view) = (row(&load, at(0)), load.view(at(0)));
    assert_eq!((row.in_flight(), row.queued_tokens, row.head), (0, 0, None));
    assert_eq!(view.open_attempts, 1);
    load.end(&lease);
    assert_eq!(load.view(at(0)).open_attempts, 0);
}

#[test]
fn an_error_is_no_fast_answer() {
    let load = load();
    let lease = load.enter(entry(Kind::Stream, 300), at(0));
    load.fail(Failure::ServerError(500), at(1));
    load.end(&lease);
    assert_eq!(row(&load, at(1)).ttft.expected, 0.0);
    assert!(row(&load, at(1)).backing_off());
}

#[test]
fn gaps_count_only_while_the_client_reads_and_against_all_that_decodes_there() {
    let load = load();
    let mut lease = load.enter(entry(Kind::Stream, 300), at(0));
    load.first_token(&mut lease, at(100));
    load.event(&mut lease, at(5000), true);
    assert_eq!(v(&load, at(5000)), 1.0, "the client was blocked");
    load.set_sample(scraped(101.0, 0.0), at(5000));
    load.event(&mut lease, at(5040), false);
    let gap = row(&load, at(5040)).gap;
    assert!((gap.measured - 0.040).abs() < 1e-9);
    assert!((gap.expected - Shape::PRIOR.step(101.0)).abs() < 1e-9, "own 1 and foreign 100");
    load.end(&lease);
}

#[test]
fn sequences_that_take_turns_in_one_step_give_no_gaps() {
    let load = load();
    let mut lease = load.enter(LeaseRequest { sequences: 4, ..entry(Kind::Stream, 300) }, at(0));
    load.first_token(&mut lease, at(100));
    load.event(&mut lease, at(101), false);
    assert_eq!(row(&load, at(101)).gap.expected, 0.0);
    load.end(&lease);
}

#[test]
fn a_recovered_backend_s_gaps_are_forgotten_without_traffic() {
    let load = load();
    let mut lease = load.enter(entry(Kind::Stream, 300), at(0));
    load.first_token(&mut lease, at(100));
    for step in 1..=20 {
        load.event(&mut lease, at(100 + step * 500), false);
    }
    load.end(&lease);
    assert!(v(&load, at(10_100)) > 5.0);
    assert!(v(&load, at(18_000)) < 2.0);
    assert_eq!(v(&load, at(40_000)), 1.0);
}

#[test]
fn scrapes_add_only_what_others_sent_and_only_while_fresh() {
    let load = load();
    let mut own = load.enter(entry(Kind::Stream, 100), at(0));
    load.first_token(&mut own, at(1));
    let second = load.enter(entry(Kind::Stream, 100), at(2));
    load.set_sample(scraped(1.0, 1.0), at(10));
    assert_eq!(row(&load, at(10)).foreign, Foreign::default(), "it is all our own");
    load.set_sample(Sample { kv_usage: Some(0.5), kv_capacity_tokens: Some(10_000), ..scraped(6.0, 4.0) }, at(20));
    let seen = row(&load, at(20));
    assert_eq!((seen.foreign.waiting, seen.foreign.running), (3.0, 5.0));
    assert_eq!((seen.foreign.prompt_tokens, seen.foreign.kv_tokens), (1500.0, 4800.0));
    assert_eq!(seen.kv_capacity, Some(10_000));
    let stale = row(&load, at(3021));
    assert_eq!((stale.foreign, stale.kv_capacity), (Foreign::default(), None));
    assert!(load.view(at(3021)).scrape.is_some_and(|scrape| scrape.stale && scrape.age_seconds > 3.0));
    load.end(&own);
    load.end(&second);
}

#[test]
fn absurd_or_missing_figures_are_absent_and_never_best() {
    let load = load();
    let absurd = Sample {
        running: Some(f64::NAN),
        waiting: Some(5.0),
        kv_usage: Some(37.0),
        kv_capacity_tokens: Some(0),
        ..Sample::default()
    };
    load.set_sample(absurd, at(0));
    let row = row(&load, at(0));
    assert_eq!((row.foreign, row.kv_capacity), (Foreign::default(), None));
    let shown = load.view(at(0)).scrape.unwrap().sample;
    assert_eq!((shown.running, shown.kv_usage, shown.waiting), (None, None, Some(5.0)));
    load.scrape_failed();
    assert_eq!(load.view(at(1)).scrape_failures, 1);
}

#[test]
fn the_head_s_progress_starts_at_its_dispatch_or_the_last_first_token() {
    let load = load();
    let mut first = load.enter(entry(Kind::Stream, 100), at(0));
    let second = load.enter(entry(Kind::Stream, 200), at(10));
    let third = load.enter(entry(Kind::Stream, 300), at(20));
    assert_eq!(row(&load, at(30)).head, Some(Head { since: at(0), tokens: 100 }));
    load.first_token(&mut first, at(40));
    assert_eq!(row(&load, at(50)).head, Some(Head { since: at(40), tokens: 200 }));
    load.end(&second);
    assert_eq!(row(&load, at(60)).head, Some(Head { since: at(40), tokens: 300 }));
    load.end(&third);
    load.end(&first);
    assert_eq!(row(&load, at(70)).head, None);
}

#[test]
fn speed_leads_until_there_are_samples_and_then_cancels() {
    let (plain, fast) = (load(), load_of(2.0));
    let facts = forebay_core::routing::facts::RequestFacts {
        est_tokens: 500,
        sequences: 1,
        kind: Kind::Stream,
        arm: forebay_core::routing::facts::ArmIndex(0),
        pinned: None,
        marks: forebay_core::routing::affinity::Marks::NONE,
    };
    let predict = |load: &Load, now| {
        let mut rows = [row(load, now)];
        forebay_core::routing::candidate::PoolRatios::of(&rows).fill(&mut rows);
        cost::terms(&rows[0], &facts, now)
    };
    assert!((predict(&plain, at(0)).ttft() / predict(&fast, at(0)).ttft() - 2.0).abs() < 1e-9);
    for load in [&plain, &fast] {
        for request in 0..200 {
            let now = at(request * 400);
            let raw = predict(load, now).raw;
            let mut lease = load.enter(LeaseRequest { raw, ..entry(Kind::Stream, 500) }, now);
            load.first_token(&mut lease, at(request * 400 + 300));
            load.end(&lease);
        }
    }
    let (plain, fast) = (predict(&plain, at(80_000)).ttft(), predict(&fast, at(80_000)).ttft());
    assert!((plain / fast - 1.0).abs() < 0.25, "both measured 300 ms: {plain} {fast}");
}

/// One step of a life: what happens to which open attempt.
#[derive(Clone, Debug)]
enum Step {
    Enter(Kind, u32, u32),
    First(prop::sample::Index),
    Event(prop::sample::Index, bool),
    Succeed(prop::sample::Index),
    Fail(prop::sample::Index, bool),
    Drop(prop::sample::Index),
    Scrape(f64, f64),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(Kind::Stream), Just(Kind::Unary), Just(Kind::NoDecode), Just(Kind::Light)];
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (kind, 0_u32..50_000, 1_u32..9).prop_map(|(kind, tokens, sequences)| Step::Enter(kind, tokens, sequences)),
        index().prop_map(Step::First),
        (index(), any::<bool>()).prop_map(|(at, blocked)| Step::Event(at, blocked)),
        index().prop_map(Step::Succeed),
        (index(), any::<bool>()).prop_map(|(at, busy)| Step::Fail(at, busy)),
        index().prop_map(Step::Drop),
        (0.0..1e6_f64, 0.0..1e6_f64).prop_map(|(running, waiting)| Step::Scrape(running, waiting)),
    ]
}

proptest! {
    #[test]
    fn after_any_interleaving_nothing_is_in_flight(steps in prop::collection::vec((step(), 0_u64..3000), 0..120)) {
        let (load, mut open, mut now) = (load(), Vec::<Lease>::new(), at(0));
        for (step, ms) in steps {
            now = now + Duration::from_millis(ms);
            let count = open.len();
            match step {
                Step::Enter(kind, tokens, sequences) => {
                    let sequences = if kind == Kind::Light { 0 } else { sequences };
                    open.push(load.enter(LeaseRequest { sequences, ..entry(kind, tokens) }, now));
                }
                Step::First(at) if count > 0 => {
                    load.first_token(&mut open[at.index(count)], now);
                }
                Step::Event(at, blocked) if count > 0 => load.event(&mut open[at.index(count)], now, blocked),
                Step::Succeed(at) if count > 0 => {
                    let lease = open.swap_remove(at.index(count));
                    load.succeed(&lease, now);
                    load.end(&lease);
                }
                Step::Fail(at, busy) if count > 0 => {
                    let lease = open.swap_remove(at.index(count));
                    let failure =
                        if busy { Failure::Busy { status: 503, retry_after: None } } else { Failure::Died };
                    load.fail(failure, now);
                    load.end(&lease);
                }
                Step::Drop(at) if count > 0 => load.end(&open.swap_remove(at.index(count))),
                Step::Scrape(running, waiting) => load.set_sample(scraped(running, waiting), now),
                _ => {}
            }
            let (row, view) = (row(&load, now), load.view(now));
            prop_assert_eq!(view.open_attempts as usize, open.len());
            prop_assert_eq!(row.head.is_some(), row.prefilling > 0);
            let (k, v) = (k(&load, now), v(&load, now));
            prop_assert!(k.is_finite() && k >= 0.0 && v.is_finite() && v >= 0.0);
        }
        for lease in open.drain(..) {
            load.end(&lease);
        }
        let (row, view) = (row(&load, now), load.view(now));
        prop_assert_eq!((row.in_flight(), row.queued_tokens, row.kv_tokens, row.head), (0, 0, 0, None));
        prop_assert_eq!(view.open_attempts, 0);
        prop_assert!(!row.probing);
    }
}
